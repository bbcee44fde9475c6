"""The commands `tureen export` and `tureen calibrate`."""
