"""Loads the weights of third-party ViTs, as a model with two tokens that computes the same."""
