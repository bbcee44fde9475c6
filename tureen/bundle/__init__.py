"""Reads, verifies and writes bundles. A bundle is a model directory that export writes and the server loads."""
