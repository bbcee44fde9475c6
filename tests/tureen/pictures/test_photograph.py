"""The steps that make a design look like a photograph."""

import numpy as np
import pytest
from PIL import Image

from tureen.pictures.photograph import FILL, SIDE, photograph


@pytest.fixture(scope="module")
def pictures():
    sign = Image.new("RGBA", (512, 512), (250, 0, 250, 255))
    return [np.asarray(photograph(sign, np.random.default_rng(seed)), dtype=float) for seed in range(8)]


def magenta(picture):
    """Whether each pixel is more than half as magenta as the sign, in whatever light."""
    excess = np.minimum(picture[..., 0], picture[..., 2]) - picture[..., 1]
    return excess > np.percentile(excess, 80) / 2


def test_the_sign_fills_four_fifths_of_the_frame(pictures):
    shares = [magenta(picture).mean() for picture in pictures]
    assert np.mean(shares) == pytest.approx(FILL**2, rel=0.1)
    assert all(0.8 * FILL**2 < share < 1.2 * FILL**2 for share in shares)


def test_the_sign_is_in_the_middle_and_never_cut(pictures):
    for picture in pictures:
        rows, columns = np.nonzero(magenta(picture))
        assert min(rows.min(), columns.min()) > 0
        assert max(rows.max(), columns.max()) < SIDE - 1
        assert abs(rows.mean() - SIDE / 2) < 0.05 * SIDE
        assert abs(columns.mean() - SIDE / 2) < 0.05 * SIDE


def test_brightness_and_background_differ_between_pictures(pictures):
    signs = [picture[magenta(picture)][:, 0].mean() for picture in pictures]
    edges = [picture[:10].mean() for picture in pictures]
    assert max(signs) - min(signs) > 25
    assert max(edges) - min(edges) > 40


def test_neighbouring_pixels_differ_by_noise(pictures):
    for picture in pictures:
        middle = picture[100:150, 100:150, 0]
        assert 1 < np.diff(middle, axis=1).std() < 15
