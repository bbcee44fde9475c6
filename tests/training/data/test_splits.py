"""The division of images into parts for training, validation and test."""

import re
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
    *parts, groups = divide("photos", source(images(*counts)))
    assert groups is None
    assert [per_class(part) for part in parts] == expected
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(sum(counts)))
    assert len(parts[1]) <= MAX_VALIDATION_IMAGES


def test_the_parts_are_the_same_in_every_call():
    first, again = (divide("photos", source(images(40, 30))) for _ in range(2))
    for part, other in zip(first[:3], again[:3], strict=True):
        np.testing.assert_array_equal(part.indices, other.indices)


def test_splits_are_not_divided_and_a_missing_validation_part_is_drawn_from_the_training_images():
    parts = divide("photos", source(images(20, 20), test=images(5, 6)))
    assert [per_class(part) for part in parts[:3]] == [[18, 18], [2, 2], [5, 6]]
    parts = divide("photos", source(images(20, 20), images(1, 2), images(5, 6)))
    assert [per_class(part) for part in parts[:3]] == [[20, 20], [1, 2], [5, 6]]


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


TRACK = re.compile(r"^\d+/(\w+)-")


def files(groups):
    """Image files named GROUP-INDEX in classes 0, 1 …: for each class the number of images of each group."""
    paths = [
        f"{label}/{group}-{index}.png"
        for label, counts in enumerate(groups)
        for group, count in counts.items()
        for index in range(count)
    ]
    return ImageFolder(Path("photos"), paths, np.array([int(path[0]) for path in paths]))


def test_no_group_is_in_two_parts():
    tracks = files([{f"a{i}": 5 for i in range(20)}, {f"b{i}": 5 for i in range(20)}])
    parts = divide("photos", source(tracks), TRACK)
    found = [{TRACK.search(part.name(i))[1] for i in range(len(part))} for part in parts[:3]]
    assert [len(groups) for groups in found] == [32, 4, 4]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    assert parts.groups == 40
    assert [per_class(part) for part in parts[:3]] == [[80, 80], [10, 10], [10, 10]]


def test_splits_whose_groups_are_separate_are_kept_and_validation_is_drawn_by_group():
    train = files([{"a": 5, "b": 5, "c": 5}, {"a": 5, "b": 5, "c": 5}])
    parts = divide("photos", source(train, test=files([{"x": 2}, {"x": 2}])), TRACK)
    assert [per_class(part) for part in parts[:3]] == [[10, 10], [5, 5], [2, 2]]
    assert parts.groups == 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [{"a": 3, "b": 3, "c": 3}, {"d": 9, "e": 1}],
            None,
            "too few groups of images of '1', 2: training, validation and test need one each",
        ),
        (
            [{"a": 3, "b": 3}, {"c": 9}],
            [{"x": 2}, {"y": 2}],
            "too few groups of images of '1', 1: training and validation",
        ),
        (
            [{"a": 3, "b": 3}, {"c": 3, "d": 3}],
            [{"b": 2, "x": 1}, {"d": 4}],
            "the group 'b' in two splits, with 3 training and 2 test images, and 1 more such groups",
        ),
        (
            [{"a": 1, "b": 1}, {"a": 1, "c": 1}, {"b": 1, "c": 1}],
            [{"x": 1}, {"x": 1}, {"x": 1}],
            "cannot be divided by --group-by: each group of '2' has the last images of another class",
        ),
    ],
)
def test_groups_that_cannot_be_divided_are_an_error(train, test, message):
    with pytest.raises(DataError, match=message):
        divide("photos", source(files(train), test=None if test is None else files(test)), TRACK)
