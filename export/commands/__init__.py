"""The commands `tureen export`, which writes a bundle, and `tureen calibrate`, which measures one again."""
