"""Batch jobs: classifies many images from files and writes exactly one row per image and β. Knows no HTTP."""
