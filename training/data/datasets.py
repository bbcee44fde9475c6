"""Loads labelled images for training and evaluation: into memory, or as files that are decoded on each access.

Knows nothing about models, augmentation or batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.sources import EncodedImages, open_source
from training.errors import DataError
from tureen.errors import ImageError
from tureen.preprocess import PreprocessSpec, decode, pixels_from_image

HELD_OUT = 450
HELD_OUT_SHARE = 0.1
IN_MEMORY_BYTES = 2 * 2**30

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Images:
    """Images in memory: pixels uint8 (n, H, W, 3), labels int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class StreamedImages:
    """Images that are decoded on each access: those of `source` at the indices `chosen`."""

    source: EncodedImages
    chosen: NDArray[np.int64]
    spec: PreprocessSpec

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int64 (n,)."""
        return self.source.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def image(self, index: int) -> Image.Image:
        """Returns the whole upright RGB image at `index`; raises DataError if it cannot be decoded any more."""
        position = int(self.chosen[index])
        try:
            return decode(self.source.read(position))
        except (ImageError, OSError) as error:
            raise DataError(
                f"{self.source.name(position)} could be decoded at the start of the run, but not now: restore the file"
            ) from error

    def label(self, index: int) -> int:
        """Returns the label at `index` without building the array of all labels."""
        return int(self.source.labels[self.chosen[index]])


@dataclass(frozen=True)
class Dataset:
    """Training images, held-out images, the names of the labels, and the images that could not be decoded."""

    train: Images | StreamedImages
    held_out: Images
    labels: list[str]
    preprocess: PreprocessSpec
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # folders beside the two splits, which were not read

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the class names and of the labels of all training images, in order.

        A resumed run must have the same.
        """
        return hashlib.sha256(repr(self.labels).encode() + self.train.labels.tobytes()).hexdigest()


def load_digits() -> Dataset:
    """Returns the 8×8 handwritten digits of scikit-learn (UCI ML): 1,347 training images and 450 held-out ones.

    Grey levels 0–16 become RGB pixels 0–255. The split is stratified and the same in every call.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, held_out = _stratified_split(labels, HELD_OUT)
    return Dataset(
        train=Images(pixels[train], labels[train]),
        held_out=Images(pixels[held_out], labels[held_out]),
        labels=[str(name) for name in digits.target_names],
        preprocess=PreprocessSpec(image_size=8),
    )


def load_dataset(
    location: str,
    spec: PreprocessSpec,
    *,
    held_out: int,
    stream: bool = False,
    strict: bool = False,
    workers: int = 1,
    on_images: Progress = lambda count: None,
) -> Dataset:
    """Returns the labelled images at `location`. Decodes each image once, to find those that cannot be decoded.

    location is one of:
    - a folder with one folder of images for each class
    - a folder with such folders `train` and `val`, or other names that `training.data.sources.split_kind` accepts
    - "hf:" and the name or the directory of a Hugging Face dataset

    Without a split, a tenth of each class is held out, the same in every call.
    spec: the evaluation view of `tureen.preprocess`. held_out: maximum number of held-out images, drawn evenly from the
    classes, the same in every call. stream: decode training images on each access; always so above 2 GiB of pixels.
    strict: raise DataError for an image that cannot be decoded, instead of skipping it and adding it to `skipped`.
    on_images: called with the number of images decoded since the last call.

    Raises DataError if there are no training or no held-out images.
    """
    source = open_source(location)
    train, test, names = source.train, source.held_out, source.names
    if len(names) < 2:
        raise DataError(f"{location} has one class, {names[0]!r}: a classifier needs at least two")
    everything = np.arange(len(train.labels))
    if test is None:
        _require_two_each(location, train.labels, names)
        train_indices, test_indices = _stratified_split(train.labels, HELD_OUT_SHARE)
        test = train
    else:
        train_indices, test_indices = everything, np.arange(len(test.labels))
    if len(test_indices) > held_out:
        if held_out < len(names):
            raise DataError(f"evaluation_images = {held_out} is less than one for each of the {len(names)} classes")
        test_indices = test_indices[_balanced_indices(test.labels[test_indices], held_out)]
    held_pixels, held_kept, held_skipped = _decode(test, test_indices, spec, workers, on_images)
    image_bytes = 3 * spec.image_size**2
    is_streamed = stream or len(train_indices) * image_bytes > IN_MEMORY_BYTES
    pixels, kept, skipped = _decode(train, train_indices, None if is_streamed else spec, workers, on_images)
    skipped = [*held_skipped, *skipped]
    if strict and skipped:
        raise DataError(f"{len(skipped)} images cannot be decoded, the first is {skipped[0]}")
    for indices, purpose in ((kept, "to train on"), (held_kept, "held out")):
        if not len(indices):
            raise DataError(f"{location} has no image {purpose} that can be decoded")
    return Dataset(
        train=StreamedImages(train, kept, spec) if is_streamed else Images(pixels, train.labels[kept]),
        held_out=Images(held_pixels, test.labels[held_kept]),
        labels=names,
        preprocess=spec,
        skipped=tuple(skipped),
        ignored=source.ignored,
    )


def load_evaluation_images(
    location: str,
    spec: PreprocessSpec,
    labels: Sequence[str],
    *,
    at_most: int,
    strict: bool = False,
    workers: int = 1,
    on_images: Progress = lambda count: None,
) -> tuple[Images, tuple[str, ...]]:
    """Returns images for the evaluation of a model, and the names of those that cannot be decoded.

    location: as for `load_dataset`; if it has splits, the held-out split is read, else all images. labels: those of the
    model; the class names at `location` must be among them. at_most: maximum number of images, drawn evenly from the
    classes, the same in every call. Raises DataError for a class that the model lacks, and if no image can be decoded.
    """
    found = open_source(location)
    source, names = found.held_out or found.train, found.names
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(f"{location} has classes that the model lacks: {', '.join(unknown[:5])}")
    indices = np.arange(len(source.labels))
    if at_most < len(indices):
        if at_most < len(names):
            raise DataError(f"{at_most} images are less than one for each of the {len(names)} classes")
        indices = _balanced_indices(source.labels, at_most)
    pixels, kept, skipped = _decode(source, indices, spec, workers, on_images)
    if strict and skipped:
        raise DataError(f"{len(skipped)} images cannot be decoded, the first is {skipped[0]}")
    if not len(kept):
        raise DataError(f"{location} has no image that can be decoded")
    index_of = np.array([labels.index(name) for name in names])
    return Images(pixels, index_of[source.labels[kept]]), tuple(skipped)


def balanced_sample(images: Images, at_most: int) -> Images:
    """Returns at most `at_most` of the images, drawn evenly from the classes, the same in every call."""
    if at_most >= len(images):
        return images
    classes = len(np.unique(images.labels))
    if at_most < classes:
        raise DataError(f"{at_most} images are less than one for each of the {classes} classes")
    chosen = _balanced_indices(images.labels, at_most)
    return Images(images.pixels[chosen], images.labels[chosen])


def _decode(
    source: EncodedImages, indices: NDArray[np.int64], spec: PreprocessSpec | None, workers: int, on_images: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Returns pixels uint8 (n, H, W, 3) of the images at `indices`, the decodable indices, and the names of the others.

    Without a spec the images are decoded and discarded: the height and width of the pixels are 0.
    """
    size = 0 if spec is None else spec.image_size
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    is_sound = np.zeros(len(indices), dtype=np.bool_)
    skipped: list[str] = []

    def load(position: int) -> str | None:
        try:
            image = decode(source.read(int(indices[position])))
        except (ImageError, OSError) as error:
            return f"{source.name(int(indices[position]))}: {error}"
        if spec is not None:
            pixels[position] = pixels_from_image(image, spec)
        is_sound[position] = True
        return None

    # Pillow releases the GIL while it decodes, so threads suffice, and no array is copied between processes.
    with ThreadPoolExecutor(workers) as pool:
        for problem in pool.map(load, range(len(indices))):
            if problem is not None:
                skipped.append(problem)
            on_images(1)
    return (pixels if is_sound.all() else pixels[is_sound]), indices[is_sound], skipped


def _require_two_each(location: str, labels: NDArray[np.int64], names: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < 2:
        name = names[int(counts.argmin())]
        raise DataError(f"{location} has fewer than two images of {name!r}: one to train on and one to hold out")


def _balanced_indices(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns indices of `count` images, drawn from the classes in turn, in a random order; the same in every call."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # number of images of the same class before it
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return rng.permutation(chosen)


def _stratified_split(labels: NDArray[np.int64], second: int | float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of two stratified parts, the same in every call.

    second: size (int) or share (float) of the second part, which gets at least one image of each class.
    """
    from sklearn import model_selection

    size = (
        max(second, len(np.unique(labels)))
        if isinstance(second, int)
        else max(round(second * len(labels)), len(np.unique(labels)))
    )
    first, last = model_selection.train_test_split(
        np.arange(len(labels)), test_size=size, random_state=0, stratify=labels
    )
    return first, last
