"""Pictures that Tureen draws itself, for the demo and the gallery: traffic signs, and a ship. No image is copied."""
