"""Finds images that are equal, or nearly equal, to a training image. Knows nothing about files or labels.

Shrinks each image to a grey thumbnail of 9 × 8 pixels. Two images are near-duplicates if two conditions hold for their
thumbnails:

- dHash: at most 10 of the 64 comparisons of horizontal neighbours differ (Krawetz, *Kind of Like That*, 2013)
- the correlation of the pixels is at least 0.95 (Lewis, *Fast Normalized Cross-Correlation*, 1995)

dHash alone wrongly matches small objects on plain backgrounds, and correlation alone wrongly matches horizons. In a
sample of 60 pairs of CIFAR-10 images that meet both conditions, two pairs were not the same photograph (docs/LOG.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_DIFFERING_BITS = 10
MIN_CORRELATION = 0.95
DIGEST_BYTES = 16
WIDTH, HEIGHT = 9, 8
PAIRS_AT_ONCE = 2**22  # 32 MiB of XORed hashes
EXAMPLES = 5


@dataclass(frozen=True)
class Signatures:
    """The data of n images for a comparison: digests of the pixels, uint8 (n, 16), and thumbnails, uint8 (n, 8, 9)."""

    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]

    @classmethod
    def empty(cls, count: int) -> Signatures:
        """Returns signatures for `count` images, without values. The caller fills them with `put`."""
        return cls(np.empty((count, DIGEST_BYTES), np.uint8), np.empty((count, HEIGHT, WIDTH), np.uint8))

    def put(self, index: int, image: Image.Image) -> None:
        """Computes the signature of an RGB image, and stores it at `index`."""
        digest = hashlib.sha256(b"%d" % image.width)
        digest.update(np.asarray(image).data)
        self.digests[index] = np.frombuffer(digest.digest()[:DIGEST_BYTES], np.uint8)
        self.thumbnails[index] = np.asarray(image.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX))

    def only(self, chosen: NDArray[np.bool_]) -> Signatures:
        """Returns the signatures where `chosen`, bool (n,), is true."""
        return Signatures(self.digests[chosen], self.thumbnails[chosen])


@dataclass(frozen=True)
class Matches:
    """For each of n images, the most similar training image among its near-duplicates.

    nearest: index of this training image, int64 (n,); −1 if no training image is a near-duplicate. likeness: float32
    (n,), the correlation of the two thumbnails; 2 for equal images, 0 if there is no near-duplicate.
    """

    nearest: NDArray[np.int64]
    likeness: NDArray[np.float32]

    @property
    def is_near(self) -> NDArray[np.bool_]:
        return self.nearest >= 0

    @property
    def is_exact(self) -> NDArray[np.bool_]:
        return self.likeness == 2


@dataclass(frozen=True)
class Duplicates:
    """The number of near-duplicates of training images in another part of the data.

    images: number of images in the part. near: number of near-duplicates among them. exact: number of near-duplicates
    with equal pixels. examples: pairs of names, of an image and of its training image; the most similar pairs first.
    """

    images: int
    near: int
    exact: int
    examples: tuple[tuple[str, str], ...] = ()


def find_duplicates(images: Signatures, training: Signatures, *, pairs_at_once: int = PAIRS_AT_ONCE) -> Matches:
    """Returns the most similar near-duplicate in `training` for each of `images`, if there is one. Compares all pairs.

    Takes 3 s on one core of a busy Xeon for 10,000 images and 50,000 training images. pairs_at_once: number of pairs in
    memory.
    """
    nearest = np.full(len(images.digests), -1, dtype=np.int64)
    likeness = np.zeros(len(images.digests), dtype=np.float32)
    hashes, training_hashes = _dhashes(images.thumbnails), _dhashes(training.thumbnails)
    pixels, training_pixels = _normalised(images.thumbnails), _normalised(training.thumbnails)
    rows = max(1, pairs_at_once // max(1, len(training_hashes)))
    for start in range(0, len(hashes), rows):
        differing = np.bitwise_count(hashes[start : start + rows, None] ^ training_hashes)
        for row in np.flatnonzero((differing <= MAX_DIFFERING_BITS).any(axis=1)):
            candidates = np.flatnonzero(differing[row] <= MAX_DIFFERING_BITS)
            correlations = training_pixels[candidates] @ pixels[start + row]
            best = int(correlations.argmax())
            if correlations[best] >= MIN_CORRELATION:
                nearest[start + row], likeness[start + row] = candidates[best], correlations[best]
    index_of = {digest.tobytes(): index for index, digest in enumerate(training.digests)}
    for position, digest in enumerate(images.digests):
        if (index := index_of.get(digest.tobytes())) is not None:
            nearest[position], likeness[position] = index, 2
    return Matches(nearest, likeness)


def duplicates_line(duplicates: Mapping[str, Duplicates]) -> str:
    """Returns one line for a terminal: the number of near-duplicates in each part, and up to five examples.

    duplicates: the near-duplicates in each part, by the name of the part, such as "test".
    """
    counts = [f"{d.near} of {d.images} {part} images ({d.exact} equal)" for part, d in duplicates.items()]
    examples = [" and ".join(pair) for d in duplicates.values() for pair in d.examples][:EXAMPLES]
    such = f", such as {'; '.join(examples)}" if examples else ""
    return f"near-duplicates of training images: {', '.join(counts)}{such}"


def _dhashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns the dHash of each thumbnail, uint64 (n,).

    A dHash has one bit for each pair of horizontal neighbours. The bit is 1 if the right pixel is brighter.
    """
    is_brighter = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return np.packbits(is_brighter.reshape(len(thumbnails), 64), axis=1).view(np.uint64).reshape(-1)


def _normalised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the pixels of each thumbnail as a row with mean 0 and length 1, float32 (n, 72).

    The dot product of two rows is the correlation of the two thumbnails.
    """
    pixels = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    length = np.linalg.norm(pixels, axis=1, keepdims=True)
    return pixels / np.maximum(length, np.float32(1e-6))
