"""Loads labelled images for training and evaluation: into memory, or as files that are decoded on each access.

Knows nothing about models, augmentation or batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.duplicates import EXAMPLES, Duplicates, Signatures, find_duplicates
from training.data.groups import group_pattern
from training.data.sources import EncodedImages, Split, open_source
from training.data.splits import Part, divide
from training.errors import DataError
from tureen.errors import ImageError
from tureen.preprocess import PreprocessSpec, decode, pixels_from_image

DIGITS_TEST, DIGITS_VALIDATION = 450, 135
IN_MEMORY_BYTES = 2 * 2**30

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Images:
    """n images in memory: pixels uint8 (n, H, W, 3), labels int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class StreamedImages:
    """n images that are decoded on each access: those of `source` at the indices `chosen`.

    spec: the preprocessing of evaluation. digests: uint8 (n, 16), a digest of the pixels of each image at the time when
    it was first decoded.
    """

    source: EncodedImages
    chosen: NDArray[np.int64]
    spec: PreprocessSpec
    digests: NDArray[np.uint8]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the images, int64 (n,)."""
        return self.source.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def image(self, index: int) -> Image.Image:
        """Decodes and returns the whole upright RGB image at `index`.

        Raises DataError if the image cannot be decoded. `load_dataset` could decode the image, so its file has changed.
        """
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
    """Labelled images in three parts: training, validation and test.

    train: the only images that change the weights. validation: images for decisions during development, such as when to
    stop. test: images for the published accuracy; no decision depends on them.
    """

    train: Images | StreamedImages
    validation: Images
    test: Images
    labels: list[str]  # names, in the order of the label indices
    preprocess: PreprocessSpec  # of evaluation
    skipped: tuple[str, ...] = ()  # the images that cannot be decoded: name and error of each
    ignored: tuple[str, ...] = ()  # names of other folders beside `train`, `val` and `test`; they were not read
    # Images of one group, such as frames of one video, are in one part. None: the images are not grouped.
    groups: int | None = None  # number of groups in all parts together
    # Near-duplicates of training images in the parts "test" and "validation". Empty if they were not counted.
    duplicates: Mapping[str, Duplicates] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Returns the SHA-256, hexadecimal, of the class names and of the labels and pixels of all training images.

        The fingerprint depends on the order of the images. A resumed run must have the same fingerprint.
        """
        content = self.train.pixels if isinstance(self.train, Images) else self.train.digests
        digest = hashlib.sha256(repr(self.labels).encode() + self.train.labels.tobytes())
        digest.update(np.ascontiguousarray(content).data)
        return digest.hexdigest()


def load_digits() -> Dataset:
    """Returns the 8×8 handwritten digits of scikit-learn (UCI ML): 1,212 for training, 135 for validation, 450 to test.

    Grey levels 0–16 become RGB pixels 0–255. The parts are stratified and the same in every call. The data do not name
    the writer of an image, so all parts contain digits of the same writers. No accuracy on these digits holds for new
    writers. Does not count near-duplicates, because 64 pixels do not distinguish a copy from a similar digit.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)

    def divided(indices: NDArray[np.int64], second: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first, last = model_selection.train_test_split(
            indices, test_size=second, random_state=0, stratify=labels[indices]
        )
        return first, last

    rest, test = divided(np.arange(len(labels)), DIGITS_TEST)
    train, validation = divided(rest, DIGITS_VALIDATION)
    return Dataset(
        train=Images(pixels[train], labels[train]),
        validation=Images(pixels[validation], labels[validation]),
        test=Images(pixels[test], labels[test]),
        labels=[str(name) for name in digits.target_names],
        preprocess=PreprocessSpec(image_size=8),
    )


def load_dataset(
    location: str,
    spec: PreprocessSpec,
    *,
    test_images: int,
    group_by: str | None = None,
    stream: bool = False,
    strict: bool = False,
    workers: int = 1,
    on_start: Progress = lambda total: None,
    on_images: Progress = lambda count: None,
    has_duplicates_counted: bool = True,
) -> Dataset:
    """Returns the labelled images at `location`. Decodes each image once, to find those that cannot be decoded.

    location is one of:

    - a folder with one folder of images for each class
    - a folder with folders `train`, `val` and `test`, each with one folder of images for each class. Other names that
      `training.data.sources.split_kind` accepts are allowed. If `val` or `test` is missing, the other one is the test
      part
    - a CSV file with the columns `path` and `label`, a row for each image; paths are relative to the folder of the file
    - "hf:" and the name or the directory of a Hugging Face dataset

    If there is no split for a part, `training.data.splits` selects the part at random from the training images.

    spec: the preprocessing of evaluation. test_images: maximum number of test images. If there are more, a sample of
    this size replaces them: balanced over the classes, and the same in every call. group_by: a regular expression that
    matches the group in the path of an image below the folder of its split; no group is in two parts. stream: whether
    to decode training images on each access; always True if they have more than 2 GiB of pixels. strict: whether to
    raise DataError for an image that cannot be decoded. If False, the image is added to `skipped`. workers: number of
    threads that decode. on_start: called with the number of all images, before the first is decoded. on_images: called
    with the number of images decoded since the last call. has_duplicates_counted: whether to count the validation and
    test images that are near-duplicates of training images.

    Raises DataError if there is only one class, if one of the three parts has no images, or if `group_by` does not fit
    the file names. Raises DataError if a sample of `test_images` has less than one image for each class.
    """
    source = open_source(location)
    names = source.names
    if len(names) < 2:
        raise DataError(f"{location} has one class, {names[0]!r}: a classifier needs at least two")
    parts = divide(location, source, None if group_by is None else group_pattern(group_by))
    train, validation, test = parts.train, parts.validation, parts.test
    if len(test) > test_images:
        if test_images < len(names):
            raise DataError(f"evaluation_images = {test_images} is less than one for each of the {len(names)} classes")
        test = replace(test, indices=test.indices[_balanced_indices(test.labels, test_images)])
    is_streamed = stream or len(train) * 3 * spec.image_size**2 > IN_MEMORY_BYTES

    def decoded(part: Part, purpose: str, *, is_kept: bool = True) -> _Decoded:
        found = _decode(part.source, part.indices, spec if is_kept else None, workers, on_images)
        if not len(found.part) and not strict:
            raise DataError(f"{location} has no image {purpose} that can be decoded")
        return found

    on_start(len(test) + len(validation) + len(train))
    tested = decoded(test, "to test on")
    validated = decoded(validation, "for validation")
    trained = decoded(train, "to train on", is_kept=not is_streamed)
    skipped = [*tested.skipped, *validated.skipped, *trained.skipped]
    if strict and skipped:
        raise DataError(f"{len(skipped)} images cannot be decoded, the first is {skipped[0]}")
    compared = {"test": tested, "validation": validated} if has_duplicates_counted else {}
    return Dataset(
        train=StreamedImages(train.source, trained.part.indices, spec, trained.signatures.digests)
        if is_streamed
        else trained.images,
        validation=validated.images,
        test=tested.images,
        labels=names,
        preprocess=spec,
        skipped=tuple(skipped),
        ignored=source.ignored,
        groups=parts.groups,
        duplicates={name: _duplicates(part, trained) for name, part in compared.items()},
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

    location: as for `load_dataset`. If there are splits at `location`, reads the test split, or else all images.
    labels: those of the model; the class names at `location` must be among them. at_most: maximum number of images. If
    there are more, reads a sample: balanced over the classes, and the same in every call. strict: whether to raise
    DataError for an image that cannot be decoded. Raises DataError for a class that the model lacks, if no image can be
    decoded, or if a sample of `at_most` has less than one image for each class.
    """
    found = open_source(location)
    source, names = found.test or found.train, found.names
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(f"{location} has classes that the model lacks: {', '.join(unknown[:5])}")
    indices = np.arange(len(source.labels))
    if at_most < len(indices):
        if at_most < len(names):
            raise DataError(f"{at_most} images are less than one for each of the {len(names)} classes")
        indices = _balanced_indices(source.labels, at_most)
    decoded = _decode(source, indices, spec, workers, on_images)
    if strict and decoded.skipped:
        raise DataError(f"{len(decoded.skipped)} images cannot be decoded, the first is {decoded.skipped[0]}")
    if not len(decoded.part):
        raise DataError(f"{location} has no image that can be decoded")
    index_of = np.array([labels.index(name) for name in names])
    return Images(decoded.pixels, index_of[decoded.part.labels]), tuple(decoded.skipped)


def balanced_sample(images: Images, at_most: int) -> Images:
    """Returns the images, or a sample of `at_most` of them: balanced over the classes, and the same in every call.

    Raises DataError if a sample of `at_most` has less than one image for each class.
    """
    if at_most >= len(images):
        return images
    classes = len(np.unique(images.labels))
    if at_most < classes:
        raise DataError(f"{at_most} images are less than one for each of the {classes} classes")
    chosen = _balanced_indices(images.labels, at_most)
    return Images(images.pixels[chosen], images.labels[chosen])


@dataclass(frozen=True)
class _Decoded:
    """The images of a part that can be decoded, with pixels and signatures, and the names of the other images."""

    part: Part
    pixels: NDArray[np.uint8]
    signatures: Signatures
    skipped: list[str]  # name and error of each image that cannot be decoded

    @property
    def images(self) -> Images:
        return Images(self.pixels, self.part.labels)


def _decode(
    source: Split, indices: NDArray[np.int64], spec: PreprocessSpec | None, workers: int, on_images: Progress
) -> _Decoded:
    """Decodes the images of `source` at `indices`. The n images that can be decoded have pixels uint8 (n, H, W, 3).

    spec: the preprocessing; None: the pixels are discarded, and H and W are 0. workers: number of threads.
    """
    size = 0 if spec is None else spec.image_size
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    signatures = Signatures.empty(len(indices))
    is_sound = np.zeros(len(indices), dtype=np.bool_)
    skipped: list[str] = []

    def load(position: int) -> str | None:
        try:
            image = decode(source.read(int(indices[position])))
        except (ImageError, OSError) as error:
            return f"{source.name(int(indices[position]))}: {error}"
        if spec is not None:
            pixels[position] = pixels_from_image(image, spec)
        signatures.put(position, image)
        is_sound[position] = True
        return None

    # Pillow releases the GIL while it decodes, so threads suffice, and no array is copied between processes.
    with ThreadPoolExecutor(workers) as pool:
        for problem in pool.map(load, range(len(indices))):
            if problem is not None:
                skipped.append(problem)
            on_images(1)
    if is_sound.all():
        return _Decoded(Part(source, indices), pixels, signatures, skipped)
    return _Decoded(Part(source, indices[is_sound]), pixels[is_sound], signatures.only(is_sound), skipped)


def _duplicates(decoded: _Decoded, training: _Decoded) -> Duplicates:
    """Returns the numbers of images in `decoded` that are near-duplicates of training images, with examples."""
    matches = find_duplicates(decoded.signatures, training.signatures)
    closest = np.argsort(-matches.likeness, kind="stable")[: min(EXAMPLES, int(matches.is_near.sum()))]
    return Duplicates(
        images=len(decoded.part),
        near=int(matches.is_near.sum()),
        exact=int(matches.is_exact.sum()),
        examples=tuple((decoded.part.name(i), training.part.name(int(matches.nearest[i]))) for i in closest.tolist()),
    )


def _balanced_indices(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Selects `count` images at random, one of each class in turn. Returns their indices, the same in every call.

    The indices are in random order.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # for each image, the number of images of its class before it
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return rng.permutation(chosen)
