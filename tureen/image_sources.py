"""Converts the images of a Python program to pixels: paths, encoded bytes, open files, Pillow images and arrays.

Knows no model. `tureen.preprocess` decodes and crops.
"""

from __future__ import annotations

import io
import os
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tureen.errors import ArgumentTypeError, InvalidPixelsError, UnreadableImageError
from tureen.preprocess import (
    ImageLimits,
    Pixels,
    PreprocessSpec,
    pixels_from_bytes,
    pixels_from_image,
    upright_rgb,
)

ACCEPTED = (
    "a path (str or Path), encoded bytes (bytes, bytearray or memoryview), a file opened in binary mode, a Pillow "
    "image, or a uint8 RGB array (H, W, 3)"
)


@runtime_checkable
class BinaryFile(Protocol):
    """An object with `read(size)`, such as an open file, io.BytesIO or the response of an HTTP client."""

    def read(self, size: int, /) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8]


def is_one_image(images: object) -> bool:
    """Returns whether `images` is a single image, even if Python can iterate over it."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3) and images.dtype.kind not in "OU"  # objects or paths: several images
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | BinaryFile | Image.Image)


def pixels_from_source(source: ImageSource, spec: PreprocessSpec, limits: ImageLimits) -> Pixels:
    """Returns the pixels, uint8 RGB (image_size, image_size, 3), of an image.

    A file and the Pillow image that Pillow opens from it give the same pixels. Reads at most `limits.max_image_bytes`
    + 1 bytes of a file. Reads an open file from its current position, and does not close it.

    Raises ImageError if the image cannot be read, is damaged, is of another format, or exceeds a limit. Raises
    ArgumentTypeError if `source` is no path, bytes, binary file, Pillow image or array.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise InvalidPixelsError("the array", source, "uint8 RGB (H, W, 3)")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return pixels_from_image(upright_rgb(source, limits), spec)
    if isinstance(source, bytes | bytearray | memoryview):
        return pixels_from_bytes(bytes(source), spec, limits)
    if isinstance(source, str | os.PathLike):
        return pixels_from_bytes(_read_file_at(os.fsdecode(source), limits.max_image_bytes), spec, limits)
    if isinstance(source, BinaryFile):
        return pixels_from_bytes(_read_open_file(source, limits.max_image_bytes), spec, limits)
    raise ArgumentTypeError(f"type {type(source).__name__} is no image: give {ACCEPTED}")


def _read_file_at(path: str, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return _read_up_to(file, max_bytes)
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or "the system gives no reason") from error
    except ValueError as error:
        raise UnreadableImageError(path, "a path cannot contain a null character") from error


def _read_open_file(file: BinaryFile, max_bytes: int) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise ArgumentTypeError("the file is opened as text: open it in binary mode, 'rb'")
    if getattr(file, "closed", False):
        raise UnreadableImageError("the file", "it is closed")
    if isinstance(file, io.IOBase) and not file.readable():
        raise UnreadableImageError("the file", "it is not open for reading")
    try:
        return _read_up_to(file, max_bytes)
    except ArgumentTypeError:
        raise
    except Exception as error:  # files of other libraries may raise any exception
        raise UnreadableImageError("the file", "reading it failed, and it may be cut short or damaged") from error


def _read_up_to(file: BinaryFile, max_bytes: int) -> bytes:
    """Returns the rest of the file, but at most `max_bytes` + 1 bytes. The caller refuses a result of that length.

    Raises ArgumentTypeError if `read` returns text instead of bytes.
    """
    data = b""
    while part := file.read(max_bytes + 1 - len(data)):
        if not isinstance(part, bytes | bytearray | memoryview):
            raise ArgumentTypeError(f"read() of the file gives {type(part).__name__}: open it in binary mode, 'rb'")
        data += part
        if len(data) > max_bytes:
            break
    return data
