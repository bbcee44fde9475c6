"""The commands `tureen train`, `tureen evaluate`, which measures accuracy, and `tureen tune`, which chooses β."""
