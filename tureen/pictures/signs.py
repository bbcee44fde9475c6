"""Draws ten German traffic signs, and makes them look like photographs.

The designs are vector drawings after the pictures in the German road traffic regulations (StVO). No image of a data set
is copied or traced. Knows no model and no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from tureen.pictures.photograph import SIDE, photograph
from tureen.pictures.vectors import Canvas, Point

WHITE, BLACK, EDGE = (238, 238, 234), (24, 24, 26), (70, 70, 72)
RED, BLUE, YELLOW = (184, 26, 36), (16, 76, 164), (240, 170, 26)
TRIANGLE_SIDE = math.sqrt(3)  # height of an equilateral triangle of side 2


def drawn_signs(seed: int) -> dict[str, Image.Image]:
    """Returns a picture of each sign of SIGNS by name, RGB 256 × 256.

    The pictures differ in rotation, perspective, background, light, blur and noise. A sign fills four fifths of its
    picture, as in the data set GTSRB. seed: 0 or more; each seed gives other pictures.
    """
    return {name: drawn_picture(name, seed) for name in SIGNS}


def drawn_picture(name: str, seed: int) -> Image.Image:
    """Returns the picture of one sign, equal to the one that `drawn_signs` returns for that name and seed."""
    return photograph(drawn_sign(name), np.random.default_rng([seed, list(SIGNS).index(name)]))


def drawn_sign(name: str) -> Image.Image:
    """Returns the design of a sign of SIGNS, RGBA 512 × 512. It touches the edges; the corners are transparent."""
    canvas = Canvas(4 * SIDE)
    SIGNS[name](canvas)
    return canvas.image.reduce(2)


def _stop(canvas: Canvas) -> None:
    for radius, colour in ((1.0, WHITE), (0.92, RED)):
        corner = radius / math.cos(math.pi / 8)
        angles = [math.radians(22.5 + 45 * number) for number in range(8)]
        canvas.polygon([(corner * math.cos(angle), corner * math.sin(angle)) for angle in angles], colour)
    canvas.text("STOP", height=0.68, spacing=0.07, weight=0.17, colour=WHITE)


def _yield(canvas: Canvas) -> None:
    _triangle(canvas, points_up=False)


def _general_danger(canvas: Canvas) -> None:
    _triangle(canvas, points_up=True)
    canvas.polygon([(-0.09, -0.28), (0.09, -0.28), (0.055, 0.27), (-0.055, 0.27)], BLACK)
    canvas.circle(0.09, BLACK, (0.0, -0.28))
    canvas.circle(0.095, BLACK, (0.0, 0.43))


def _speed_limit(number: str) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        _prohibition(canvas)
        canvas.text(number, height=0.82, spacing=0.1, weight=0.145, colour=BLACK)

    return draw


def _no_overtaking(canvas: Canvas) -> None:
    _prohibition(canvas)
    for middle, colour in ((-0.34, RED), (0.34, BLACK)):
        canvas.rounded_polygon(_box(middle - 0.22, 0.0, middle + 0.22, 0.12), 0.06, colour)  # body
        canvas.polygon(_trapezoid(middle, -0.24, 0.0, 0.16, 0.25), colour)
        canvas.polygon(_trapezoid(middle, -0.17, -0.04, 0.11, 0.15), WHITE)  # windscreen
        for wheel in (-0.2, 0.2):
            canvas.polygon(_box(middle + wheel - 0.065, 0.14, middle + wheel + 0.065, 0.28), colour)


def _no_entry(canvas: Canvas) -> None:
    canvas.circle(1.0, WHITE)
    canvas.circle(0.95, RED)
    canvas.polygon(_box(-0.74, -0.18, 0.74, 0.18), WHITE)


def _priority_road(canvas: Canvas) -> None:
    for radius, colour in ((0.93, EDGE), (0.905, WHITE), (0.6, BLACK), (0.57, YELLOW)):
        canvas.rounded_polygon([(0, -radius), (radius, 0), (0, radius), (-radius, 0)], 0.06, colour)


def _keep_right(canvas: Canvas) -> None:
    canvas.circle(1.0, WHITE)
    canvas.circle(0.95, BLUE)
    canvas.stroke([(-0.56, -0.56), (0.44, 0.44)], 0.24, WHITE)
    canvas.polygon(
        [(0.62, 0.62), (-0.2, 0.62), (-0.04, 0.4), (0.22, 0.4), (0.4, 0.22), (0.4, -0.04), (0.62, -0.2)], WHITE
    )


def _prohibition(canvas: Canvas) -> None:
    canvas.circle(1.0, WHITE)
    canvas.circle(0.96, RED)
    canvas.circle(0.74, WHITE)


def _triangle(canvas: Canvas, *, points_up: bool) -> None:
    """Draws a white triangle with a red border, as wide as the canvas and centred on it."""
    upwards = 1 if points_up else -1
    for inset, radius, colour in ((0.0, 0.12, WHITE), (0.04, 0.08, RED), (0.25, 0.02, WHITE)):
        distance = inset + radius - 0.08  # the round corners of the white edge end at those of the canvas
        half, low, high = 1 - distance * math.sqrt(3), TRIANGLE_SIDE / 2 - distance, 2 * distance - TRIANGLE_SIDE / 2
        canvas.rounded_polygon([(0.0, upwards * high), (half, upwards * low), (-half, upwards * low)], radius, colour)


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _trapezoid(middle: float, top: float, bottom: float, half_top: float, half_bottom: float) -> list[Point]:
    return [
        (middle - half_top, top),
        (middle + half_top, top),
        (middle + half_bottom, bottom),
        (middle - half_bottom, bottom),
    ]


SIGNS: Mapping[str, Callable[[Canvas], None]] = {
    "stop": _stop,
    "yield": _yield,
    "speed-limit-30": _speed_limit("30"),
    "speed-limit-50": _speed_limit("50"),
    "speed-limit-80": _speed_limit("80"),
    "no-entry": _no_entry,
    "priority-road": _priority_road,
    "no-overtaking": _no_overtaking,
    "keep-right": _keep_right,
    "general-danger": _general_danger,
}
"""The signs, and how each is drawn on a canvas."""
