"""Groups of images: read from file names, and drawn whole."""

import numpy as np
import pytest

from training.data.groups import draw_groups, group_names, group_pattern
from training.errors import DataError

NAMES = ["stop/00007_00001.png", "stop/00007_00002.png", "yield/00007_00001.png"]


@pytest.mark.parametrize(
    ("expression", "groups"),
    [
        (r"^.*_", ["stop/00007_", "stop/00007_", "yield/00007_"]),
        (r"/(\d+)_", ["00007"] * 3),  # the same group in both classes
        (r"_(?:0+)(\d+)", ["1", "2", "1"]),
        (r"^.+_00002|.+", ["stop/00007_00001.png", "stop/00007_00002", "yield/00007_00001.png"]),
    ],
)
def test_a_group_is_the_text_of_the_capturing_group_or_the_match(expression, groups):
    assert group_names(NAMES, group_pattern(expression)) == groups


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(", "'\\(' is not a regular expression: missing \\), unterminated subpattern"),
        (r"(\d+)_(\d+)", "has 2 capturing groups: use at most one"),
        ("patient", "gives no group for 3 of 3 images, such as stop/00007_00001.png"),
        ("stop|yie(x)?", "gives no group for 3 of 3 images"),
        ("^stop", "gives no group for 1 of 3 images, such as yield/00007_00001.png"),
        ("x*", "gives no group for 3 of 3 images"),
    ],
)
def test_an_expression_that_gives_no_groups_is_an_error(expression, message):
    with pytest.raises(DataError, match=message):
        group_names(NAMES, group_pattern(expression))


def shares(labels, is_drawn):
    return np.bincount(labels[is_drawn], minlength=labels.max() + 1) / np.bincount(labels)


def test_tracks_of_one_class_each_are_drawn_whole_and_about_evenly():
    """40 classes of 7 to 46 tracks, of 30 images each, as in GTSRB."""
    tracks = np.repeat(np.arange(40), np.arange(7, 47))
    labels, groups = np.repeat(tracks, 30), np.repeat(np.arange(len(tracks)), 30)
    is_drawn = draw_groups(labels, groups, 0.1, kept=2)
    assert not set(groups[is_drawn]) & set(groups[~is_drawn])
    found = shares(labels, is_drawn)
    assert 0.08 < is_drawn.mean() < 0.12
    assert found.min() > 0.05
    assert found.max() < 0.15
    np.testing.assert_array_equal(is_drawn, draw_groups(labels, groups, 0.1, kept=2))


def test_writers_of_all_classes_are_drawn_whole():
    groups = np.repeat(np.arange(30), 20)
    labels = np.tile(np.arange(10), 60)
    is_drawn = draw_groups(labels, groups, 0.1, kept=2)
    assert len(set(groups[is_drawn])) == 3
    assert not set(groups[is_drawn]) & set(groups[~is_drawn])


@pytest.mark.parametrize("sizes", [(50, 30, 3), (3, 30, 50), (30, 3, 50)])
def test_the_smallest_group_is_drawn_if_each_is_larger_than_the_share(sizes):
    groups = np.repeat(np.arange(3), sizes)
    is_drawn = draw_groups(np.zeros(83, dtype=np.int64), groups, 0.02, kept=2)
    assert is_drawn.sum() == 3


def test_a_class_keeps_its_last_groups():
    """Group 0 holds both classes; the single other group of class 1 must not be drawn too."""
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 3])
    is_drawn = draw_groups(labels, groups, 0.9, kept=1)
    assert set(labels[~is_drawn]) == {0, 1}
    assert set(labels[is_drawn]) == {0, 1}
