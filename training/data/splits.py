"""Splits labelled images into three parts: training, validation (for decisions during development) and test.

Does not read images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.groups import draw_groups, group_names
from training.data.sources import LabelledSource, Split
from training.errors import DataError

TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1
MAX_VALIDATION_IMAGES = 1000


@dataclass(frozen=True)
class Part:
    """A part of the images: those of `source` at `indices`."""

    source: Split
    indices: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the images, int64 (n,)."""
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, position: int) -> str:
        """Returns the name of the image at `position` in this part, for messages."""
        return self.source.name(int(self.indices[position]))


class Parts(NamedTuple):
    """The three parts of a source. groups: number of groups of its images; None if the images are not grouped."""

    train: Part
    validation: Part
    test: Part
    groups: int | None = None


def divide(location: str, source: LabelledSource, group_by: re.Pattern[str] | None = None) -> Parts:
    """Returns the parts for training, validation and test. The parts are the same in every call.

    If the source has no split for validation or test, selects this part at random from the training images. Such a part
    has a tenth of the images of each class. A validation part of this kind has at most about 1,000 images, but at least
    one image or group of each class.

    group_by: matches the group in the file name of an image; no group is in two parts. location: for error messages.
    Raises DataError if a class has too few images, or groups, for all parts. Raises DataError if a group is in two
    splits of the source, or if a file name has no group.
    """
    grouping = None if group_by is None else _Grouping(location, source, group_by)
    train = _whole(source.train)
    total, drawn = len(train), [part for part in (source.validation, source.test) if part is None]
    if drawn:
        _require_members_of_each_class(location, train, source.names, 1 + len(drawn), grouping)
    if source.test is None:
        train, test = _drawn(location, train, TEST_SHARE, source.names, grouping, kept=len(drawn))
    else:
        test = _whole(source.test)
    if source.validation is None:
        share = min(VALIDATION_SHARE * total, MAX_VALIDATION_IMAGES) / len(train)
        train, validation = _drawn(location, train, share, source.names, grouping, kept=1)
    else:
        validation = _whole(source.validation)
    return Parts(train, validation, test, None if grouping is None else grouping.count)


class _Grouping:
    """The groups of the images of a source.

    of_train: number of the group of each of n training images, int64 (n,), from 0. count: number of groups in all
    splits.
    """

    def __init__(self, location: str, source: LabelledSource, pattern: re.Pattern[str]) -> None:
        """Reads the groups from the file names.

        Raises DataError if a group is in two splits, or if a file name has no group.
        """
        splits = {"training": source.train, "validation": source.validation, "test": source.test}
        names = {part: group_names(split.file_names(), pattern) for part, split in splits.items() if split is not None}
        counts = {part: Counter(groups) for part, groups in names.items()}
        for first, second in combinations(counts, 2):
            if shared := sorted(counts[first].keys() & counts[second].keys()):
                group = shared[0]
                raise DataError(
                    f"{location} has the group {group!r} in two splits, with {counts[first][group]} {first} and "
                    f"{counts[second][group]} {second} images, and {len(shared) - 1} more such groups: move each group "
                    "into one split, or change --group-by"
                )
        self.of_train = np.unique(np.array(names["training"]), return_inverse=True)[1].astype(np.int64)
        self.count = sum(map(len, counts.values()))


def _whole(source: Split) -> Part:
    return Part(source, np.arange(len(source.labels)))


def _drawn(
    location: str, part: Part, share: float, names: Sequence[str], grouping: _Grouping | None, *, kept: int
) -> tuple[Part, Part]:
    """Splits `part` at random into two parts. Returns the rest of `part`, then the selected part.

    The selected part has about `share` of the images of each class, and at least one. kept: minimum number of groups of
    each class in the rest. Raises DataError if no group of a class can be selected because of `kept`.
    """
    if grouping is None:
        is_drawn = _stratified(part.labels, share)
    else:
        is_drawn = draw_groups(part.labels, grouping.of_train[part.indices], share, kept=kept)
        if missing := sorted(set(part.labels.tolist()) - set(part.labels[is_drawn].tolist())):
            raise DataError(
                f"{location} cannot be divided by --group-by: each group of {names[missing[0]]!r} has the last images "
                "of another class for a part"
            )
    return replace(part, indices=part.indices[~is_drawn]), replace(part, indices=part.indices[is_drawn])


def _stratified(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Selects about `share` of the images of each class at random, at least one of each class.

    Returns whether each of the n images is selected, bool (n,). This function replaces train_test_split of
    scikit-learn, which may leave out a class that is much smaller than others.
    """
    rng = np.random.default_rng(0)
    is_drawn = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        is_drawn[of_class[: max(1, round(share * len(of_class)))]] = True
    return is_drawn


def _require_members_of_each_class(
    location: str, part: Part, names: Sequence[str], parts: int, grouping: _Grouping | None
) -> None:
    """Raises DataError if a class has fewer images (or groups) than `parts`. location, names: for the error message."""
    labels = part.labels
    if grouping is not None:
        labels = np.unique(np.stack([grouping.of_train, labels]), axis=1)[1]
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < parts:
        name = names[int(counts.argmin())]
        members = "images" if grouping is None else "groups of images"
        purposes = "training, validation and test" if parts == 3 else "training and validation"
        raise DataError(f"{location} has too few {members} of {name!r}, {counts.min()}: {purposes} need one each")
