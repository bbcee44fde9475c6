"""Strips an encoded image: removes comments, profiles, previews and all other parts that do not change the pixels.

Pillow reads the parts of a JPEG or PNG file in Python, and decompresses texts and profiles. A file with many such parts
would occupy a server for seconds, and the warnings about them would fill the log. WebP files are not changed, because
libwebp skips such parts at no cost. This module reads the orientation of an image, and `tureen.preprocess` applies it.
Knows the layout of the files and nothing about pixels.

JPEG: ITU-T T.81, annex B. PNG: W3C PNG (third edition), section 5. The orientation: Exif 2.32, section 4.6.4.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from tureen.errors import ImageTooLargeError, UndecodableImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

# Matches up to the next marker: one or more 0xff, then a code. Does not backtrack, because a file may be all 0xff.
_MARKER = re.compile(rb"(?:[^\xff]*+\xff++\x00)*+[^\xff]*+\xff++([^\x00])")
# The same after the start of a scan: skips its data, its restarts and the codes that libjpeg skips.
_AFTER_SCAN = re.compile(rb"(?:[^\xff]*+\xff++[\x00-\xbf\xd0-\xd7])*+[^\xff]*+\xff++([\xc0-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_DISPENSABLE = {
    *range(0xE1, 0xEE),
    0xEF,
    0xFE,
}  # application segments and comments; JFIF and Adobe define colours
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_XMP = b"XML:com.adobe.xmp\0"

_ORIENTATION = 0x0112
_UNSIGNED = {3: "H", 4: "I"}  # types of a value, and their struct formats
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


class StrippedImage(NamedTuple):
    """A stripped image, and the two removed parts that may define its orientation.

    data: the stripped image. exif, xmp: the Exif and the XMP part of the file; empty if the file has none.
    """

    data: bytes
    exif: bytes = b""
    xmp: bytes = b""


def strip_metadata(data: bytes, *, max_parts: int, max_scans: int) -> StrippedImage:
    """Returns the stripped image of a JPEG or PNG file. Returns any other file unchanged.

    Keeps only the first frame of an animated PNG. max_parts: segments of a JPEG, or chunks of a PNG. max_scans: of a
    JPEG. Raises ImageTooLargeError if the file has more, and UndecodableImageError if a JPEG ends before its pixels.
    """
    if data.startswith(JPEG_SIGNATURE):
        image, scan = _strip_jpeg(data, max_parts)
        _check_scans(image.data, scan, max_parts=max_parts, max_scans=max_scans)
        return image
    return _strip_png(data, max_parts) if data.startswith(PNG_SIGNATURE) else StrippedImage(data)


def orientation(exif: bytes, xmp: bytes) -> int:
    """Returns the orientation of an image by its Exif number, 1 (upright) to 8.

    exif, xmp: as in `StrippedImage`. An orientation in `exif` takes precedence. Returns 1 if neither part has a valid
    orientation.
    """
    found = _exif_orientation(exif.removeprefix(_EXIF))
    if found is None:
        match = _XMP_ORIENTATION.search(xmp)
        return int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _exif_orientation(tiff: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION and kind in _UNSIGNED and length == 1:
                value: int = struct.unpack_from(f"{order}{_UNSIGNED[kind]}", tiff, entry + 8)[0]
                return value
    except struct.error:  # truncated
        pass
    return None


def _strip_jpeg(data: bytes, max_parts: int) -> tuple[StrippedImage, int]:
    """Returns the stripped JPEG, and the index of the byte at which the first scan of the stripped JPEG begins."""
    kept, exif, xmp, position = [data[:2]], b"", b"", 2
    for _ in range(max_parts):
        match = _MARKER.match(data, position)
        if match is None:
            raise UndecodableImageError
        marker, start, position = match[1][0], match.end() - 2, match.end()
        if marker == _START_OF_SCAN:
            kept.append(data[start:])
            image = b"".join(kept)
            return StrippedImage(image, exif, xmp), len(image) - len(kept[-1])
        if marker in _WITHOUT_LENGTH:
            continue
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
        segment = data[start:position]
        if marker not in _DISPENSABLE:
            kept.append(segment)
        elif not exif and segment.startswith(_EXIF, 4):
            exif = segment[4:]
        elif not xmp and segment.startswith(_XMP, 4):
            xmp = segment[4:]
    raise ImageTooLargeError("segments", max_parts)


def _check_scans(data: bytes, position: int, *, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLargeError if the JPEG has more than `max_scans` scans or `max_parts` segments.

    position: the index of the first scan, where the count begins. Each scan costs as much as decoding the image once,
    even if the scan is short.
    """
    # Fast, and sufficient for nearly all images. Data after the image, such as a film, may contain the bytes often.
    if data.count(b"\xff\xda", position) <= max_scans:
        return
    scans = 0
    for _ in range(max_parts):
        match = _AFTER_SCAN.match(data, position)
        if match is None or match[1][0] == _END_OF_IMAGE:
            return
        scans += match[1][0] == _START_OF_SCAN
        if scans > max_scans:
            raise ImageTooLargeError("scans", max_scans)
        position = match.end() + max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
    raise ImageTooLargeError("segments", max_parts)


def _strip_png(data: bytes, max_parts: int) -> StrippedImage:
    kept, exif, xmp, position = [data[:8]], b"", b"", 8
    for _ in range(max_parts):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if kind in _PNG_KEPT:
            kept.append(data[position:end])
        elif kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"iTXt" and data.startswith(_PNG_XMP, position + 8):
            xmp = data[position + 8 : end - 4]
        position = end
        if kind == b"IEND" or position >= len(data):
            return StrippedImage(b"".join(kept), exif, xmp)
    raise ImageTooLargeError("chunks", max_parts)
