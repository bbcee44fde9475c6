"""Near-duplicates: what counts as one, and what does not."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from training.data.duplicates import Duplicates, Signatures, duplicates_line, find_duplicates


def photograph(seed, size=(48, 40)):
    """Return a picture of random smooth shapes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def signatures(*images):
    made = Signatures.empty(len(images))
    for index, image in enumerate(images):
        made.put(index, image)
    return made


def noisy(image):
    noise = np.random.default_rng(1).integers(-6, 7, np.asarray(image).shape)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


TRAINING = signatures(*(photograph(seed) for seed in range(50)))


@pytest.mark.parametrize(
    ("change", "is_near", "is_exact"),
    [
        (lambda image: image, True, True),
        (noisy, True, False),
        (lambda image: image.resize((24, 20)), True, False),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.8), True, False),
        (lambda image: ImageEnhance.Color(image).enhance(0.5), True, False),
        (lambda image: image.crop((1, 1, 48, 40)), True, False),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False, False),
        (lambda image: image.rotate(90), False, False),
        (lambda image: photograph(1000), False, False),
    ],
)
def test_a_small_change_of_a_photograph_is_a_near_duplicate_and_another_view_is_not(change, is_near, is_exact):
    matches = find_duplicates(signatures(photograph(7), change(photograph(7))), TRAINING)
    assert matches.nearest.tolist() == [7, 7 if is_near else -1]
    assert matches.is_near.tolist() == [True, is_near]
    assert matches.is_exact.tolist() == [True, is_exact]


def test_images_of_one_colour_are_equal_or_not_duplicates():
    black, white, wide = (
        Image.new("RGB", size, colour) for size, colour in [((8, 8), 0), ((8, 8), "white"), ((16, 4), 0)]
    )
    matches = find_duplicates(signatures(black, white, wide), signatures(black))
    assert matches.nearest.tolist() == [0, -1, -1]


def test_pictures_with_one_of_the_two_measures_in_common_are_not_duplicates():
    """Two horizons correlate; the comparisons of neighbours along a line are noise."""
    rng = np.random.default_rng(0)
    horizon = np.repeat(np.linspace(0, 255, 8)[:, None, None], 9, axis=1) + rng.integers(-4, 5, (2, 8, 9, 1))
    images = [Image.fromarray(h.clip(0, 255).astype(np.uint8).repeat(3, axis=2)) for h in horizon]
    assert not find_duplicates(signatures(images[0]), signatures(images[1])).is_near.any()


def test_many_images_are_compared_in_parts():
    whole = find_duplicates(TRAINING, TRAINING)
    parts = find_duplicates(TRAINING, TRAINING, pairs_at_once=120)
    np.testing.assert_array_equal(whole.nearest, np.arange(50))
    np.testing.assert_array_equal(parts.nearest, whole.nearest)


def test_the_line_has_the_number_of_each_part_and_five_examples():
    test = Duplicates(900, 4, 2, tuple((f"{i}.png", f"train-{i}.png") for i in range(4)))
    validation = Duplicates(100, 3, 0, tuple((f"v{i}.png", f"train-v{i}.png") for i in range(3)))
    line = duplicates_line({"test": test, "validation": validation})
    assert (
        "4 of 900 test images (2 equal), 3 of 100 validation images (0 equal), such as 0.png and train-0.png;" in line
    )
    assert line.count("train-") == 5
    assert duplicates_line({"test": Duplicates(9, 0, 0)}).endswith("0 of 9 test images (0 equal)")
