"""The shapes, measured in the pixels that they fill."""

import math

import numpy as np
import pytest

from tureen.pictures.vectors import GLYPHS, Canvas, ellipse_arc

INK = (10, 20, 30)


def filled(canvas):
    """The pixels that are drawn, bool (H, W)."""
    return np.asarray(canvas.image)[..., 3] > 0


def extent(canvas):
    """Left, top, right and bottom of the drawn pixels, in the coordinates of the canvas."""
    rows, columns = np.nonzero(filled(canvas))
    side = canvas.image.width
    return [2 * value / side - 1 for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.fixture
def canvas():
    return Canvas(400)


def test_a_new_canvas_is_transparent(canvas):
    assert not filled(canvas).any()


def test_a_circle_has_its_area_and_its_colour(canvas):
    canvas.circle(0.5, INK)
    assert filled(canvas).mean() * 4 == pytest.approx(math.pi / 4, rel=0.02)
    assert canvas.image.getpixel((200, 200)) == (*INK, 255)


def test_a_stroke_has_flat_ends_and_its_width(canvas):
    canvas.stroke([(-0.5, 0.0), (0.5, 0.0)], 0.2, INK)
    assert extent(canvas) == pytest.approx([-0.5, -0.1, 0.5, 0.1], abs=0.02)
    assert filled(canvas).mean() * 4 == pytest.approx(0.2, rel=0.05)


def test_a_rounded_polygon_is_wider_than_its_points_and_its_corners_are_round(canvas):
    canvas.rounded_polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], 0.2, INK)
    assert extent(canvas) == pytest.approx([-0.7, -0.7, 0.7, 0.7], abs=0.02)
    assert filled(canvas).mean() * 4 == pytest.approx(1.4**2 - (4 - math.pi) * 0.2**2, rel=0.02)


def test_an_arc_goes_clockwise_from_the_right():
    points = ellipse_arc((1.0, 2.0), (3.0, 4.0), 0, 90)
    assert points[0] == pytest.approx((4.0, 2.0))
    assert points[-1] == pytest.approx((1.0, 6.0))


@pytest.mark.parametrize("text", [*GLYPHS, "STOP", "80"])
def test_text_is_centred_and_as_high_as_requested(canvas, text):
    canvas.text(text, height=0.8, spacing=0.1, weight=0.16, colour=INK)
    left, top, right, bottom = extent(canvas)
    assert (top, bottom) == pytest.approx((-0.4, 0.4), abs=0.03)
    assert left == pytest.approx(-right, abs=0.06)


def test_no_two_characters_look_the_same():
    drawn = []
    for character in GLYPHS:
        canvas = Canvas(100)
        canvas.text(character, height=1.6, spacing=0.1, weight=0.16, colour=INK)
        drawn.append(filled(canvas))
    for number, first in enumerate(drawn):
        for second in drawn[:number]:
            assert (first ^ second).sum() > 0.05 * first.sum()
