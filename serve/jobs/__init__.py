"""Batch jobs: they classify many images from files and write exactly one row per image and β. Knows no HTTP."""
