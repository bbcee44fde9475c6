"""Measures the accuracy of a model at each β: on clean images, under an attack, under corruptions and shifts."""
