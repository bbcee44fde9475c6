"""Learns a token for given images, with all other weights frozen, and compares it with the best β."""
