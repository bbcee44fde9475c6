"""Batch jobs: many images from files, rows into shards, each exactly once. Knows no HTTP."""
