"""Batch jobs: a job classifies many images from files, and writes one row for each image and β. Knows no HTTP."""
