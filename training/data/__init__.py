"""Images for training and evaluation: where they come from, their split into three parts, batches, and augmentation."""
