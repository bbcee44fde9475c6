"""Images for training and evaluation: sources, loading, augmentation."""
