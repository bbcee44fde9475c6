"""The division of images into parts for training, validation and test."""

from pathlib import Path

import numpy as np
import pytest

from training.data.sources import ImageFolder, LabelledSource
from training.data.splits import MAX_VALIDATION_IMAGES, divide
from training.errors import DataError


def images(*counts):
    """Image files in a folder for each class, with these numbers of images."""
    paths = [f"{label}/{index}.png" for label, count in enumerate(counts) for index in range(count)]
    return ImageFolder(Path("photos"), paths, np.repeat(np.arange(len(counts)), counts))


def source(train, validation=None, test=None):
    return LabelledSource(train, validation, test, [str(label) for label in range(train.labels.max() + 1)])


def per_class(part):
    return np.bincount(part.labels).tolist()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((20, 20), [[16, 16], [2, 2], [2, 2]]),
        ((3, 3), [[1, 1], [1, 1], [1, 1]]),
        ((1000, 3), [[800, 1], [100, 1], [100, 1]]),  # a small class is in each part
        ((30_000, 10_000), [[26_250, 8_750], [750, 250], [3_000, 1_000]]),  # at most 1,000 images for validation
    ],
)
def test_a_folder_without_splits_gives_a_tenth_of_each_class_to_validation_and_to_test(counts, expected):
    parts = divide("photos", source(images(*counts)))
    assert [per_class(part) for part in parts] == expected
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(sum(counts)))
    assert len(parts[1]) <= MAX_VALIDATION_IMAGES


def test_the_parts_are_the_same_in_every_call():
    first, again = (divide("photos", source(images(40, 30))) for _ in range(2))
    for part, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(part.indices, other.indices)


def test_splits_are_not_divided_and_a_missing_validation_part_is_drawn_from_the_training_images():
    train, validation, test = divide("photos", source(images(20, 20), test=images(5, 6)))
    assert [per_class(part) for part in (train, validation, test)] == [[18, 18], [2, 2], [5, 6]]
    parts = divide("photos", source(images(20, 20), images(1, 2), images(5, 6)))
    assert [per_class(part) for part in parts] == [[20, 20], [1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (None, "too few images of '1', 1: training, validation and test need one each"),
        (images(4, 4), "too few images of '1', 1: training and validation need one each"),
    ],
)
def test_a_class_with_fewer_images_than_parts_is_named(test, message):
    with pytest.raises(DataError, match=message):
        divide("photos", source(images(5, 1), test=test))
