"""Measures accuracy: clean, under attack, under corruptions and shifts, by β."""
