"""The drawn signs: their shape and colour, and how they vary with the seed."""

import numpy as np
import pytest

from tureen.pictures.photograph import SIDE
from tureen.pictures.signs import SIGNS, drawn_picture, drawn_sign, drawn_signs


@pytest.fixture(scope="module")
def pictures():
    return drawn_signs(0)


def test_there_are_ten_signs_as_rgb_pictures(pictures):
    assert len(SIGNS) == 10
    assert list(pictures) == list(SIGNS)
    assert {(picture.mode, picture.size) for picture in pictures.values()} == {("RGB", (SIDE, SIDE))}


def test_a_seed_gives_the_same_pictures_and_another_seed_others(pictures):
    other = drawn_signs(1)
    for name, picture in pictures.items():
        assert drawn_picture(name, 0).tobytes() == picture.tobytes()
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(other[name], dtype=int)).mean() > 5


@pytest.mark.parametrize("name", SIGNS)
def test_a_design_touches_the_edges_and_leaves_the_corners_transparent(name):
    opaque = np.asarray(drawn_sign(name))[..., 3] > 127
    rows, columns = np.nonzero(opaque)
    assert columns.max() - columns.min() > 0.93 * opaque.shape[1]
    assert rows.max() - rows.min() > 0.78 * opaque.shape[0]
    corners = opaque[:: len(opaque) - 1, :: len(opaque) - 1]
    assert corners.sum() <= 2  # a triangle may touch two


@pytest.mark.parametrize(
    ("name", "channel"),
    [("stop", 0), ("no-entry", 0), ("keep-right", 2)],
)
def test_a_sign_of_one_colour_has_it_in_the_picture(pictures, name, channel):
    middle = np.asarray(pictures[name], dtype=float)[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].mean((0, 1))
    assert middle.argmax() == channel
    assert middle[channel] > 1.3 * np.delete(middle, channel).max()


def test_the_designs_differ_from_each_other_in_the_view_of_a_small_model():
    small = [np.asarray(drawn_sign(name).resize((32, 32)).convert("RGB"), dtype=int) for name in SIGNS]
    for number, first in enumerate(small):
        for second in small[:number]:
            assert np.abs(first - second).max() > 100
