"""Turns a checkpoint into a bundle: the backbone compiled once, proven equal to PyTorch at every β, then written."""
