"""Filters and warps against SciPy on single images, and the properties of kernels and clouds."""

import numpy as np
import pytest
from scipy import ndimage

from training.evaluation import filters


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 3, 12, 9), dtype=np.float32)


def test_pixels_survive_the_way_to_images_and_back():
    pixels = np.arange(2 * 8 * 16 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    images = filters.from_pixels(pixels)
    assert images.shape == (2, 3, 8, 16)
    assert images.dtype == np.float32
    assert images.max() == 1
    assert np.array_equal(filters.to_pixels(images), pixels)


def test_values_out_of_range_are_clipped_and_others_rounded():
    images = np.array([-0.1, 0.6 / 255, 1.1], dtype=np.float32).reshape(1, 3, 1, 1)
    assert filters.to_pixels(images).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("sigma", [0.05, 0.6, 2.0, 20.0])
def test_gaussian_blur_is_scipys(images, sigma):
    expected = ndimage.gaussian_filter(images, (0, 0, sigma, sigma), mode="reflect", truncate=4)
    np.testing.assert_allclose(filters.gaussian_blur(images, sigma), expected, atol=1e-5)  # float32 sums


def test_convolution_is_scipys_with_one_kernel_or_one_each(images):
    kernels = np.random.default_rng(1).random((2, 5, 5), dtype=np.float32)
    expected = np.stack([ndimage.convolve(images[i], kernels[i][None], mode="reflect") for i in range(2)])
    convolved = filters.convolve(images, kernels)
    assert convolved.dtype == np.float32
    np.testing.assert_allclose(convolved, expected, atol=1e-4)  # float32, and values up to 25
    np.testing.assert_allclose(filters.convolve(images, kernels[:1])[0], expected[0], atol=1e-4)


def test_sampling_is_scipys_inside_and_far_outside(images):
    rows, columns = np.random.default_rng(2).uniform(-30, 30, size=(2, 2, 7, 5))
    sampled = filters.sample(images, rows, columns)
    assert sampled.shape == (2, 3, 7, 5)
    for i in range(2):
        for channel in range(3):
            expected = ndimage.map_coordinates(images[i, channel], [rows[i], columns[i]], order=1, mode="reflect")
            np.testing.assert_allclose(sampled[i, channel], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.3, 2.0])
def test_zoom_enlarges_the_middle(factor):
    image = np.random.default_rng(3).random((32, 32), dtype=np.float32)
    cropped = int(np.ceil(32 / factor))
    first = (32 - cropped) // 2
    enlarged = ndimage.zoom(image[first : first + cropped, first : first + cropped], factor, order=1)
    trimmed = (len(enlarged) - 32) // 2
    expected = enlarged[trimmed : trimmed + 32, trimmed : trimmed + 32]
    np.testing.assert_allclose(filters.zoom(image[None, None], factor)[0, 0], expected, atol=1e-5)


def test_a_zoom_of_one_changes_nothing(images):
    np.testing.assert_allclose(filters.zoom(images, 1.0), images, atol=1e-6)


@pytest.mark.parametrize(("radius", "pixels"), [(0.3, 1), (1, 5), (3, 29), (10, 317)])
def test_a_sharp_disc_is_flat_over_the_lattice_points_within_it(radius, pixels):
    kernel = filters.defocus_kernel(radius, 0.1)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.isclose(kernel, 1 / pixels, atol=1e-5).sum() == pixels


def test_a_soft_disc_keeps_its_sum():
    assert filters.defocus_kernel(4, 0.5).sum() == pytest.approx(1, abs=1e-5)
    assert filters.defocus_kernel(4, 0.5).max() <= filters.defocus_kernel(4, 0.1).max() + 1e-6


def test_a_trail_lies_to_one_side_along_its_angle():
    right, down = filters.motion_kernels(np.array([0, np.pi / 2]), radius=3, sigma=2)
    assert right.sum() == pytest.approx(1, abs=1e-6)
    row, columns = right[6], np.arange(13)
    assert row.sum() == pytest.approx(1, abs=1e-6)
    # A kernel is flipped as it is convolved: what it takes from the right lies to the left in it.
    assert (row > 0).tolist() == (columns <= 6).tolist()
    assert row[6] / row[4] == pytest.approx(np.exp(0.5))  # two pixels are one sigma
    np.testing.assert_allclose(down, right.T, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 32, 20), (1, 5, 7), (1, 1, 1)])
def test_clouds_have_the_requested_shape_and_lie_between_0_and_1(shape):
    clouds = filters.plasma(shape, 2.0, np.random.default_rng(0))
    assert clouds.shape == shape
    assert clouds.min() >= 0
    assert clouds.max() <= 1


def test_clouds_of_less_decay_are_rougher():
    def roughness(decay):
        return np.abs(np.diff(filters.plasma((8, 64, 64), decay, np.random.default_rng(0)))).mean()

    assert roughness(1.2) > 2 * roughness(2) > 4 * roughness(4) / 2
