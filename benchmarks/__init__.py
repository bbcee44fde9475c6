"""Benchmarks: each command prints figures that README.md or docs/ publish."""
