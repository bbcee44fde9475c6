"""Each shift changes images as its name says, by an amount that follows from its severity."""

import numpy as np
import pytest

from training.evaluation.shifts import SHIFTS


def shifted(pixels, name, severity):
    return SHIFTS[name](pixels, severity, np.random.default_rng(0))


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, size=(4, 12, 10, 3), dtype=np.uint8)


def blob(row, column, count=32, side=65):
    """Return images with one soft white spot."""
    rows, columns = np.mgrid[:side, :side]
    spot = 255 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18)
    return np.repeat(np.round(spot).astype(np.uint8)[None, ..., None], 3, axis=3).repeat(count, axis=0)


def spots(pixels):
    """Return rows and columns (n,) of the spots, relative to the centre."""
    weights = pixels[..., 0].astype(float)
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    offsets = np.arange(pixels.shape[1]) - (pixels.shape[1] - 1) / 2
    return (weights.sum(axis=2) * offsets).sum(axis=1), (weights.sum(axis=1) * offsets).sum(axis=1)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_rotation_turns_by_ten_degrees_a_severity_either_way(severity):
    rows, columns = spots(shifted(blob(32, 44), "rotation", severity))
    angles = np.degrees(np.arctan2(rows, columns))
    assert np.allclose(np.abs(angles), 10 * severity, atol=1)  # of a spot drawn on whole pixels and levels
    assert {-1, 1} == set(np.sign(angles))
    assert np.allclose(np.hypot(rows, columns), 12, atol=0.2)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_translation_moves_by_a_twentieth_of_the_side_a_severity_in_all_directions(severity):
    rows, columns = spots(shifted(blob(32, 32), "translation", severity))
    assert np.allclose(np.hypot(rows, columns), 0.05 * severity * 65, atol=0.1)
    assert {(-1, -1), (-1, 1), (1, -1), (1, 1)} == set(zip(np.sign(rows), np.sign(columns), strict=True))


@pytest.mark.parametrize("severity", [1, 3])
def test_scale_magnifies_or_reduces_about_the_centre(severity):
    _, columns = spots(shifted(blob(32, 42), "scale", severity))
    factor = 1 + 0.15 * severity
    # The spot is ten pixels from the centre; what a reduced picture is mirrored into lies beyond 22 / factor.
    near = np.minimum(np.abs(columns - 10 * factor), np.abs(columns - 10 / factor))
    assert (near < 0.2).all()
    assert {True, False} == set(columns > 10)


def test_greyscale_removes_a_fifth_of_the_colour_a_severity_and_keeps_luminance(pixels):
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    colour = pixels - luminance[..., None]
    for severity in range(1, 6):
        expected = luminance[..., None] + (1 - severity / 5) * colour
        assert np.abs(shifted(pixels, "greyscale", severity) - expected).max() < 0.51  # rounding
    assert np.ptp(shifted(pixels, "greyscale", 5), axis=3).max() == 0


def test_a_grey_picture_has_no_colour_to_lose(pixels):
    grey = pixels[..., :1].repeat(3, axis=3)
    assert np.array_equal(shifted(grey, "greyscale", 3), grey)


def test_inversion_ends_at_the_negative(pixels):
    assert np.array_equal(shifted(pixels, "inversion", 5), 255 - pixels)
    expected = 0.6 * pixels + 0.4 * (255.0 - pixels)
    assert np.abs(shifted(pixels, "inversion", 2) - expected).max() < 0.51  # rounding


def test_a_sketch_is_dark_at_an_edge_and_white_elsewhere():
    step = np.full((1, 32, 32, 3), 40, dtype=np.uint8)
    step[:, :, 16:] = (90, 200, 30)
    drawn = shifted(step, "sketch", 5)
    assert (drawn[:, :, [0, 8, 24, 31]] == 255).all()
    assert (drawn[:, :, 15:17] == 0).all()
    assert np.ptp(drawn, axis=3).max() == 0


def test_a_sketch_of_nothing_is_white_paper():
    flat = np.full((1, 8, 8, 3), 77, dtype=np.uint8)
    assert (shifted(flat, "sketch", 5) == 255).all()
