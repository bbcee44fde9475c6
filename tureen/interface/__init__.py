"""What a program gives to a soup or a server, and what it gets: encoded images and predictions. Needs no NumPy."""
