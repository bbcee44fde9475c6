"""Labelled images to train on and to measure with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tureen.preprocess import PreprocessSpec

HELD_OUT = 450


@dataclass(frozen=True)
class Images:
    """pixels uint8 (n, H, W, 3), labels int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Images to train on, images held out, and what the labels are called."""

    train: Images
    held_out: Images
    labels: list[str]
    preprocess: PreprocessSpec


def load_digits() -> Dataset:
    """1,797 handwritten digits, 8×8, as scikit-learn carries them (UCI ML hand-written digits): 1,347 and 450.

    Grey levels 0–16 become RGB pixels 0–255. The split is stratified and the same at every call.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, held_out = model_selection.train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=labels
    )
    return Dataset(
        train=Images(pixels[train], labels[train]),
        held_out=Images(pixels[held_out], labels[held_out]),
        labels=[str(name) for name in digits.target_names],
        preprocess=PreprocessSpec(image_size=8),
    )


DATASETS = {"digits": load_digits}
