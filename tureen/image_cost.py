"""Estimates the cost of decoding an image from its header. Decodes nothing.

One kilobyte can encode 25 million pixels, so neither the bytes nor the images of a request give its cost. The weights
are measured: `python -m benchmarks.serving --only expensive` compares them with real decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from tureen.image_header import UNKNOWN_HEADER, read_header

LEAST_WORK = 4096  # of any image: the work of a decoder that does not depend on the size
FREE_WORK = 65_536  # at most this makes an image small: receiving its request costs as much
MOST_WORK = 1_000_000  # of a small image; some decoders hold the interpreter lock during it
WORK_PER_BYTE = 64  # an image with more is disproportionate: photographs have 5 to 20, bombs up to 1,000,000


class ImageKind(Enum):
    """Class of an image. Small: little work. Large: much work and many bytes. Disproportionate: much work, few bytes.

    A client pays for large images, such as photographs, with bandwidth. It does not pay for disproportionate images.
    """

    SMALL = auto()
    LARGE = auto()
    DISPROPORTIONATE = auto()


@dataclass(frozen=True)
class ImageCost:
    """The estimated cost of decoding an image.

    pixels: width × height. work: in decoded pixels of a baseline JPEG. memory: bytes in use during decoding.
    """

    pixels: int
    work: int
    memory: int
    kind: ImageKind


NO_COST = ImageCost(0, 0, 0, ImageKind.SMALL)  # of pixels that need no decoding
LEAST_COST = ImageCost(0, LEAST_WORK, 0, ImageKind.SMALL)


def image_cost(data: bytes, *, max_pixels: int, max_scans: int) -> ImageCost:
    """Returns the cost of decoding the image; LEAST_COST if it is no image or is refused before decoding."""
    header = read_header(data, max_scans=max_scans)
    if header is None or header.pixels > max_pixels:
        return LEAST_COST
    pixels = max_pixels if header is UNKNOWN_HEADER else header.pixels
    work = LEAST_WORK + int(pixels * header.pixel_work) + header.height * header.row_work
    memory = pixels * header.pixel_bytes + header.height * header.row_bytes + 2 * len(data)
    return ImageCost(pixels, work, memory, _kind(work, len(data)))


def _kind(work: int, size: int) -> ImageKind:
    if work > max(FREE_WORK, WORK_PER_BYTE * size):
        return ImageKind.DISPROPORTIONATE
    return ImageKind.SMALL if work <= MOST_WORK else ImageKind.LARGE
