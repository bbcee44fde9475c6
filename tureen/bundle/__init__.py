"""The bundle: its format, its files, and their checks."""
