"""Trains dual-token ViTs on clean and adversarial images at once, and measures every soup of the two tokens."""
