"""Divides labelled images into a part to train on, one for choices during development, and one for the final test.

Knows nothing about pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
        """Labels, int64 (n,)."""
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, position: int) -> str:
        """Returns the name of an image of this part, for messages."""
        return self.source.name(int(self.indices[position]))


def divide(location: str, source: LabelledSource) -> tuple[Part, Part, Part]:
    """Returns the parts for training, validation and test. A part without a split is drawn from the training images.

    A drawn part holds a tenth of all images, spread over the classes; validation holds about 1,000 at most. It is the
    same in every call. Raises DataError, with `location`, for a class with fewer images than there are parts to draw.
    """
    train = _whole(source.train)
    total, drawn = len(train), [part for part in (source.validation, source.test) if part is None]
    if drawn:
        _require_images_of_each_class(location, train.labels, source.names, 1 + len(drawn))
    if source.test is None:
        train, test = _drawn(train, TEST_SHARE)
    else:
        test = _whole(source.test)
    if source.validation is None:
        train, validation = _drawn(train, min(VALIDATION_SHARE * total, MAX_VALIDATION_IMAGES) / len(train))
    else:
        validation = _whole(source.validation)
    return train, validation, test


def _whole(source: Split) -> Part:
    return Part(source, np.arange(len(source.labels)))


def _drawn(part: Part, share: float) -> tuple[Part, Part]:
    """Returns the rest of a part, and a random share of it: about `share` of each class, and at least one image.

    scikit-learn's train_test_split may leave out a class that is much smaller than others.
    """
    rng, labels = np.random.default_rng(0), part.labels
    is_drawn = np.zeros(len(part), dtype=np.bool_)
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        is_drawn[of_class[: max(1, round(share * len(of_class)))]] = True
    return replace(part, indices=part.indices[~is_drawn]), replace(part, indices=part.indices[is_drawn])


def _require_images_of_each_class(location: str, labels: NDArray[np.int64], names: Sequence[str], parts: int) -> None:
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < parts:
        name = names[int(counts.argmin())]
        purposes = "training, validation and test" if parts == 3 else "training and validation"
        raise DataError(f"{location} has too few images of {name!r}, {counts.min()}: {purposes} need one each")
