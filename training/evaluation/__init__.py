"""Measures accuracy at each β: clean, under attack, under corruptions and shifts."""
