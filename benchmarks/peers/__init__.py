"""Servers of other projects with which `benchmarks.beside_peers` compares Tureen, each with its virtual environment."""
