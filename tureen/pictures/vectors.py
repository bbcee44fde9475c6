"""Draws shapes and characters as vectors into an RGBA image. Uses no font, so text is the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

_ARC_STEPS = 24  # segments of a quarter of an ellipse


class Canvas:
    """A transparent square image to draw on. Coordinates are from −1 (left, top) to 1 (right, bottom).

    side: height and width in pixels. Edges are not antialiased, so the caller draws on a large canvas and reduces the
    image.
    """

    def __init__(self, side: int) -> None:
        self.image = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self.image)
        self._side = side

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fills a polygon of at least three points."""
        self._draw.polygon([self._pixel(point) for point in points], fill=colour)

    def circle(self, radius: float, colour: Colour, centre: Point = (0.0, 0.0)) -> None:
        """Fills a circle. radius, centre: in coordinates of the canvas."""
        self.polygon(ellipse_arc(centre, (radius, radius), 0, 360), colour)

    def rounded_polygon(self, points: Sequence[Point], radius: float, colour: Colour) -> None:
        """Fills a polygon with round corners: the polygon through `points`, extended by `radius` on all sides."""
        self.polygon(points, colour)
        self.stroke([*points, points[0]], 2 * radius, colour)
        self.circle(radius, colour, points[0])

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draws a line of the given width through the points, with round joints and flat ends."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            dx, dy = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
            self.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], colour)
        for joint in points[1:-1]:
            self.circle(width / 2, colour, joint)

    def text(self, text: str, *, height: float, spacing: float, weight: float, colour: Colour) -> None:
        """Draws characters of GLYPHS in one line, centred on the canvas.

        height: of the characters, including the width of their lines. spacing: the gap between two characters, as a
        share of the height. weight: the width of a line, as a share of the height.
        """
        scale = height * (1 - weight)
        gap = (spacing + weight) * height
        left = -(sum(GLYPHS[character][0] for character in text) * scale + gap * (len(text) - 1)) / 2
        for character in text:
            width, lines = GLYPHS[character]
            for line in lines:
                self.stroke([(left + x * scale, (y - 0.5) * scale) for x, y in line], weight * height, colour)
            left += width * scale + gap

    def _pixel(self, point: Point) -> Point:
        return (point[0] + 1) / 2 * self._side, (point[1] + 1) / 2 * self._side


def ellipse_arc(centre: Point, radii: Point, start: float, end: float) -> list[Point]:
    """Returns points on an ellipse from the angle `start` to the angle `end`, in degrees: 0 is right, 90 is down."""
    steps = max(2, round(abs(end - start) / 90 * _ARC_STEPS))
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle)) for angle in angles]


def _oval(width: float) -> list[Point]:
    """Returns the closed centre line of the characters 0 and O: two straight sides between two half circles.

    The line has height 1 and the given width.
    """
    radius = width / 2
    top = ellipse_arc((radius, radius), (radius, radius), 180, 360)
    bottom = ellipse_arc((radius, 1 - radius), (radius, radius), 0, 180)
    return [*top, *bottom, *top[:2]]


GLYPHS: dict[str, tuple[float, list[list[Point]]]] = {
    "0": (0.52, [_oval(0.52)]),
    "3": (
        0.52,
        [
            [
                *ellipse_arc((0.25, 0.24), (0.23, 0.24), 195, 450),
                *ellipse_arc((0.25, 0.74), (0.27, 0.26), 270, 525),
            ]
        ],
    ),
    "5": (
        0.52,
        [
            [
                *[(0.5, 0.0), (0.04, 0.0), (0.04, 0.43), (0.24, 0.41)],
                *ellipse_arc((0.24, 0.705), (0.28, 0.295), 270, 505),
            ]
        ],
    ),
    "8": (
        0.52,
        [
            ellipse_arc((0.26, 0.235), (0.22, 0.235), 0, 375),
            ellipse_arc((0.26, 0.735), (0.26, 0.265), 0, 375),
        ],
    ),
    "S": (
        0.46,
        [
            [
                *ellipse_arc((0.23, 0.25), (0.23, 0.25), 345, 110),
                *ellipse_arc((0.23, 0.75), (0.23, 0.25), 290, 525),
            ]
        ],
    ),
    "T": (0.42, [[(-0.1, 0.0), (0.52, 0.0)], [(0.21, 0.0), (0.21, 1.1)]]),  # flat ends begin outside the box
    "O": (0.48, [_oval(0.48)]),
    "P": (0.46, [[(0.0, 1.1), (0.0, 0.0), *ellipse_arc((0.21, 0.28), (0.25, 0.28), 270, 450), (0.0, 0.56)]]),
}
"""The width of each character and its centre lines, in a box of height 1 whose left edge is 0."""
