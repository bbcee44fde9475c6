"""Images for training and evaluation: their sources, their division into parts, batches, and augmentation."""
