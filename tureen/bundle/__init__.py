"""Reads, verifies and writes bundles: the model directories that export makes and the server loads."""
