"""The commands `tureen train`, `tureen evaluate` and `tureen tune`."""
