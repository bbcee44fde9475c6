"""Reads the size of an image from its header, and the work and memory that decoding needs. Decodes nothing.

JPEG: ITU-T T.81, annex B. PNG: W3C PNG (third edition), section 11.2.1. WebP: RFC 9649, section 2, and RFC 6386,
section 9.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tureen.image_metadata import JPEG_SIGNATURE, PNG_SIGNATURE

MAX_PARTS_READ = 256  # segments or chunks before the pixels; a photograph has at most about 40

_JPEG_MARKER = re.compile(rb"[^\xff]*+\xff++([^\xff])", re.DOTALL)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 to SOF15
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True)
class ImageHeader:
    """The size of an image, and the work and memory that decoding needs for each pixel and for each row.

    pixel_work, row_work: in units of the time that one pixel of a baseline JPEG takes. pixel_bytes, row_bytes: memory.
    width, height: in pixels.
    """

    width: int
    height: int
    pixel_work: float
    pixel_bytes: int
    row_work: int = 0
    row_bytes: int = 0

    @property
    def pixels(self) -> int:
        return self.width * self.height


UNKNOWN_HEADER = ImageHeader(1, 1, 5, 28)  # the highest cost, for a header that is not near the beginning of the file


def read_header(data: bytes, *, max_scans: int) -> ImageHeader | None:
    """Returns the header of a JPEG, PNG or WebP image; None if `data` has no such header.

    Returns UNKNOWN_HEADER if the header does not end within the first MAX_PARTS_READ parts of the file, or if a PNG
    file has two headers. `preprocess.decode` refuses an image that is larger than the returned header says.
    max_scans: limit on the counted scans. A progressive JPEG may have more scans after its first one, but no more count
    as decoding work.
    """
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg_header(data, max_scans)
    if data.startswith(PNG_SIGNATURE):
        return _png_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    return None


def _jpeg_header(data: bytes, max_scans: int) -> ImageHeader | None:
    position, width, height, is_sequential, components = 2, 0, 0, True, 0
    for _ in range(MAX_PARTS_READ):
        match = _JPEG_MARKER.match(data, position)
        if match is None:
            return None
        marker, position = match[1][0], match.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in _FRAMES:
            height = max(height, int.from_bytes(data[position + 3 : position + 5], "big"))
            width = max(width, int.from_bytes(data[position + 5 : position + 7], "big"))
            components = data[position + 7] if len(data) > position + 7 else 0
            is_sequential = marker in _SEQUENTIAL
        if marker == _START_OF_SCAN:
            of_scan = data[position + 2] if len(data) > position + 2 else 0
            if is_sequential and of_scan == components:  # all components in one scan; a decoder reads no further one
                return ImageHeader(width, height, 1, 8)
            scans = 1 + min(max_scans, data.count(b"\xff\xda", position))
            # The decoder keeps the coefficients of the whole image, and each scan processes all of them.
            return ImageHeader(width, height, 1 + scans / 5, 14)
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return UNKNOWN_HEADER


def _png_header(data: bytes) -> ImageHeader | None:
    header, has_transparency, position = None, False, 8
    for _ in range(MAX_PARTS_READ):
        kind = data[position + 4 : position + 8]
        if kind == b"IHDR":
            if header is not None:
                return UNKNOWN_HEADER
            header = data[position + 8 : position + 21]
        elif kind == b"tRNS":
            has_transparency = True
        elif kind == b"IDAT" or not kind:
            break
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    else:
        return UNKNOWN_HEADER
    if header is None or len(header) < 13:
        return None
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colour, is_interlaced = header[8], header[9], header[12] != 0
    if has_transparency or colour & 4:
        work, held = 3, 22
    elif depth == 16:
        work, held = 4, 18
    else:
        work, held = (2, 12) if colour == 2 else (1, 10)  # 2: RGB
    return ImageHeader(width, height, work, held, row_work=8 if is_interlaced else 4, row_bytes=24)


def _webp_header(data: bytes) -> ImageHeader | None:
    kind, chunk = data[12:16], data[20:30]
    if len(chunk) < 10:
        return None
    if kind == b"VP8 ":
        width, height = (int.from_bytes(chunk[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        has_alpha = False
    elif kind == b"VP8L":
        bits = int.from_bytes(chunk[1:5], "little")
        width, height, has_alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
    elif kind == b"VP8X":
        width, height = (1 + int.from_bytes(chunk[at : at + 3], "little") for at in (4, 7))
        has_alpha = bool(chunk[0] & 0x10)
    else:
        return None
    return ImageHeader(width, height, 5, 30) if has_alpha else ImageHeader(width, height, 3, 18)
