"""Trains models with a clean and a robust mode on clean and adversarial images, and measures the accuracy at each β."""
