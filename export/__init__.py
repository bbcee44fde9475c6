"""Converts a checkpoint to a bundle: compiles the backbone, compares each engine with PyTorch, and writes the files."""
