"""Trains dual-token ViTs on clean and adversarial images together, and measures their accuracy at each β."""
