"""`tureen train` and `tureen evaluate`."""
