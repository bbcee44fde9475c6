"""Estimates the cost of decoding an image from its header. Decodes nothing.

One kilobyte can encode 25 million pixels. So neither the number of bytes nor the number of images shows the cost of a
request. `python -m benchmarks.serving --only expensive` compares the estimates with the real times of decoding.
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
    """The class of an image by the work of decoding it.

    SMALL: at most MOST_WORK. LARGE: more work, such as a photograph; the client pays for it with bandwidth.
    DISPROPORTIONATE: more than FREE_WORK, and more than WORK_PER_BYTE for each byte of the file.
    """

    SMALL = auto()
    LARGE = auto()
    DISPROPORTIONATE = auto()


@dataclass(frozen=True)
class ImageCost:
    """The estimated cost of decoding an image.

    pixels: width × height. work: time of decoding, in units of the time that one pixel of a baseline JPEG takes.
    memory: bytes in use during decoding. kind: which decoders the image uses.
    """

    pixels: int
    work: int
    memory: int
    kind: ImageKind


NO_COST = ImageCost(0, 0, 0, ImageKind.SMALL)  # of pixels that need no decoding
LEAST_COST = ImageCost(0, LEAST_WORK, 0, ImageKind.SMALL)


def image_cost(data: bytes, *, max_pixels: int, max_scans: int) -> ImageCost:
    """Returns the cost of decoding the image in `data`.

    max_pixels: an image with more pixels is not decoded, so it has LEAST_COST. Data without a readable header has
    LEAST_COST too. max_scans: at most this many further scans of a progressive JPEG add work.
    """
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
