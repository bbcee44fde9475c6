"""Labelled images to train on and to measure with: in memory, or as encoded files that are decoded when needed.

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

from training.data.sources import Encoded, open_source
from training.errors import DataError
from tureen.errors import ImageError
from tureen.preprocess import PreprocessSpec, decode, pixels_from_image

HELD_OUT = 450
HELD_OUT_SHARE = 0.1
IN_MEMORY_BYTES = 2 * 2**30

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Images:
    """pixels uint8 (n, H, W, 3), labels int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Stream:
    """Images too many for memory: those of `source` at `chosen`, decoded each time they are asked for."""

    source: Encoded
    chosen: NDArray[np.int64]
    spec: PreprocessSpec

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (n,)."""
        return self.source.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def image(self, index: int) -> Image.Image:
        """The upright RGB image at `index`, whole; raises DataError where it was decoded before and is no more."""
        position = int(self.chosen[index])
        try:
            return decode(self.source.read(position))
        except (ImageError, OSError) as error:
            raise DataError(
                f"{self.source.name(position)} could be read when the run began, and cannot be now"
            ) from error

    def label(self, index: int) -> int:
        """The label at `index`, without gathering all of them."""
        return int(self.source.labels[self.chosen[index]])


@dataclass(frozen=True)
class Dataset:
    """Images to train on, images held out, what the labels are called, and which images could not be read."""

    train: Images | Stream
    held_out: Images
    labels: list[str]
    preprocess: PreprocessSpec
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # folders beside a ready-made split, which were not read

    def fingerprint(self) -> str:
        """SHA-256 of the number, order and labels of the training images: equal for a run and its continuation."""
        return hashlib.sha256(repr(self.labels).encode() + self.train.labels.tobytes()).hexdigest()


def load_digits() -> Dataset:
    """1,797 handwritten digits, 8×8, as scikit-learn carries them (UCI ML hand-written digits): 1,347 and 450.

    Grey levels 0–16 become RGB pixels 0–255. The split is stratified and the same at every call.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, held_out = _split(labels, HELD_OUT)
    return Dataset(
        train=Images(pixels[train], labels[train]),
        held_out=Images(pixels[held_out], labels[held_out]),
        labels=[str(name) for name in digits.target_names],
        preprocess=PreprocessSpec(image_size=8),
    )


def load_images(
    location: str,
    spec: PreprocessSpec,
    *,
    held_out: int,
    stream: bool = False,
    strict: bool = False,
    workers: int = 1,
    on_images: Progress = lambda count: None,
) -> Dataset:
    """The labelled images at `location`, each decoded once to see that it can be.

    location: a folder with a folder of images for each class, or one with `train` and `val` (or `validation`, `test`,
    in any spelling that `training.data.sources.split_of` knows) of that kind; or "hf:" and the name or the directory
    of a Hugging Face dataset. Without a split a tenth of each class is held out, the same at every call. spec: the
    evaluation view, `tureen.preprocess`'s. held_out: how many held-out images to keep at most, drawn evenly from the
    classes, the same at every call. stream: decode training images when they are needed, as is done anyway where they
    would take more than 2 GiB. strict: raise DataError at an image that cannot be decoded, instead of leaving it out
    and naming it in `skipped`. on_images: called with how many more were decoded. Raises DataError where there is
    nothing to train on.
    """
    source = open_source(location)
    train, test, names = source.train, source.held_out, source.names
    if len(names) < 2:
        raise DataError(f"{location} has one class, {names[0]!r}: a classifier needs at least two")
    everything = np.arange(len(train.labels))
    if test is None:
        _require_two_each(location, train.labels, names)
        train_indices, test_indices = _split(train.labels, HELD_OUT_SHARE)
        test = train
    else:
        train_indices, test_indices = everything, np.arange(len(test.labels))
    if len(test_indices) > held_out:
        if held_out < len(names):
            raise DataError(f"evaluation_images = {held_out} is less than one for each of the {len(names)} classes")
        test_indices = test_indices[_drawn(test.labels[test_indices], held_out)]
    held_pixels, held_kept, held_skipped = _decoded(test, test_indices, spec, workers, on_images)
    image_bytes = 3 * spec.image_size**2
    is_streamed = stream or len(train_indices) * image_bytes > IN_MEMORY_BYTES
    pixels, kept, skipped = _decoded(train, train_indices, None if is_streamed else spec, workers, on_images)
    skipped = [*held_skipped, *skipped]
    if strict and skipped:
        raise DataError(f"{len(skipped)} images cannot be decoded, the first is {skipped[0]}")
    for indices, what in ((kept, "to train on"), (held_kept, "held out")):
        if not len(indices):
            raise DataError(f"{location} has no image {what} that can be decoded")
    return Dataset(
        train=Stream(train, kept, spec) if is_streamed else Images(pixels, train.labels[kept]),
        held_out=Images(held_pixels, test.labels[held_kept]),
        labels=names,
        preprocess=spec,
        skipped=tuple(skipped),
        ignored=source.ignored,
    )


def load_labelled(
    location: str,
    spec: PreprocessSpec,
    labels: Sequence[str],
    *,
    at_most: int,
    strict: bool = False,
    workers: int = 1,
    on_images: Progress = lambda count: None,
) -> tuple[Images, tuple[str, ...]]:
    """Images to measure a model on, and the names of those that cannot be decoded.

    location: as for `load_images`; of a ready-made split the held-out part counts, otherwise all there is. labels: the
    model's, of which the folders' names may be some. at_most: drawn evenly from the classes, the same at every call.
    Raises DataError for a class that the model does not know, and where nothing can be decoded.
    """
    found = open_source(location)
    source, names = found.held_out or found.train, found.names
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(f"{location} has classes that the model does not: {', '.join(unknown[:5])}")
    indices = np.arange(len(source.labels))
    if at_most < len(indices):
        if at_most < len(names):
            raise DataError(f"{at_most} images are less than one for each of the {len(names)} classes")
        indices = _drawn(source.labels, at_most)
    pixels, kept, skipped = _decoded(source, indices, spec, workers, on_images)
    if strict and skipped:
        raise DataError(f"{len(skipped)} images cannot be decoded, the first is {skipped[0]}")
    if not len(kept):
        raise DataError(f"{location} has no image that can be decoded")
    index_of = np.array([labels.index(name) for name in names])
    return Images(pixels, index_of[source.labels[kept]]), tuple(skipped)


def drawn_evenly(images: Images, at_most: int) -> Images:
    """Up to that many of the images, drawn evenly from the classes, the same at every call."""
    if at_most >= len(images):
        return images
    classes = len(np.unique(images.labels))
    if at_most < classes:
        raise DataError(f"{at_most} images are less than one for each of the {classes} classes")
    chosen = _drawn(images.labels, at_most)
    return Images(images.pixels[chosen], images.labels[chosen])


def _decoded(
    source: Encoded, indices: NDArray[np.int64], spec: PreprocessSpec | None, workers: int, on_images: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Pixels uint8 (n, H, W, 3) of the images at `indices`, the indices that could be decoded, and the others' names.

    Without a spec the images are decoded and let go: pixels is empty.
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

    # Pillow lets go of the interpreter while it decodes, so threads are enough, and an array needs no copying back.
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


def _drawn(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of `count` images, drawn from the classes in turn, in a random order; the same at every call."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return rng.permutation(chosen)


def _split(labels: NDArray[np.int64], second: int | float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices in two stratified parts, the same at every call; `second` is the size of the second, or its share."""
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
