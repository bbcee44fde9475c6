"""Finds the group of each image in its file name, and selects whole groups at random. Opens no file.

A group consists of all images of one origin, such as the track of a video, a writer or a patient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError


def group_pattern(expression: str) -> re.Pattern[str]:
    """Returns the compiled regular expression of --group-by.

    Raises DataError if the expression is invalid or has several capturing groups.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise DataError(f"{expression!r} is not a regular expression: {error}") from error
    if pattern.groups > 1:
        raise DataError(f"{expression!r} has {pattern.groups} capturing groups: use at most one, and (?:…)")
    return pattern


def group_names(names: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Returns the name of the group of each image: the part of its file name that `pattern` matches.

    If `pattern` has a capturing group, returns the text that this group captures. The pattern may match anywhere in a
    name. Raises DataError if there is no match, or if the match is empty.
    """
    groups = [(match[pattern.groups] or "") if (match := pattern.search(name)) else "" for name in names]
    if missing := [name for name, group in zip(names, groups, strict=True) if not group]:
        count = f"{len(missing)} of {len(names)} images"
        raise DataError(f"--group-by {pattern.pattern!r} gives no group for {count}, such as {missing[0]}")
    return groups


def draw_groups(labels: NDArray[np.int64], groups: NDArray[np.int64], share: float, *, kept: int) -> NDArray[np.bool_]:
    """Selects random groups with about `share` of the images of each class. The result is the same in every call.

    labels: class of each of n images, int64 (n,). groups: number of the group of each image, int64 (n,), from 0. kept:
    minimum number of groups of each class that are not selected. Returns whether the group of each image is selected,
    bool (n,). A class has no selected image only if `kept` forbids the selection of each of its groups.

    This function replaces StratifiedGroupKFold of scikit-learn, which may leave out classes. With ten folds of the
    tracks of GTSRB, most folds lack one to five of the 43 classes.
    """
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    images: dict[int, dict[int, int]] = {}  # by group and class
    by_class: dict[int, list[int]] = {}
    for group, label, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        images.setdefault(group, {})[label] = count
        by_class.setdefault(label, []).append(group)
    left = {label: len(members) for label, members in by_class.items()}
    taken = dict.fromkeys(by_class, 0)
    drawn: set[int] = set()
    rng = np.random.default_rng(0)
    for label in sorted(by_class, key=lambda label: (left[label], label)):
        members = [by_class[label][index] for index in rng.permutation(len(by_class[label]))]
        quota = share * sum(images[group][label] for group in members)
        # A group larger than the quota is selected only if there is no smaller one.
        for group in sorted(members, key=lambda group: max(0.0, images[group][label] - quota)):
            is_too_large = taken[label] > 0 and taken[label] + images[group][label] / 2 > quota
            if group in drawn or is_too_large or any(left[other] <= kept for other in images[group]):
                continue
            drawn.add(group)
            for other, count in images[group].items():
                taken[other] += count
                left[other] -= 1
    return np.isin(groups, np.fromiter(drawn, dtype=np.int64, count=len(drawn)))
