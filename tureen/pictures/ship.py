"""Draws a ship, the sample image of the CIFAR-10 example."""

from __future__ import annotations

from PIL import Image, ImageDraw


def drawn_ship() -> Image.Image:
    """Returns a simple drawing of a ship, RGB 320 × 320."""
    picture = Image.new("RGB", (320, 320), (150, 190, 225))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 200, 320, 320), fill=(40, 80, 120))  # sea
    draw.polygon([(40, 180), (290, 180), (260, 235), (75, 235)], fill=(60, 50, 55))  # hull
    draw.rectangle((100, 140, 220, 180), fill=(235, 235, 235))  # decks
    draw.rectangle((130, 105, 190, 140), fill=(220, 220, 220))
    draw.rectangle((150, 70, 170, 105), fill=(190, 60, 50))  # funnel
    return picture
