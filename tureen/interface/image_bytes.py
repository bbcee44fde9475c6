"""Reads the bytes of an encoded image that a Python program gives: a path, bytes or an open file.

Does not decode the image, and needs neither NumPy nor Pillow.
"""

from __future__ import annotations

import io
import os
from typing import Protocol, runtime_checkable

from tureen.errors import ArgumentTypeError, UnreadableImageError

ENCODED = "a path (str or Path), encoded bytes (bytes, bytearray or memoryview) or a file opened in binary mode"


@runtime_checkable
class BinaryFile(Protocol):
    """An object with `read(size)`, such as an open file, io.BytesIO or the response of an HTTP client."""

    def read(self, size: int, /) -> bytes: ...


EncodedSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile


def is_encoded_source(source: object) -> bool:
    """Returns whether `encoded_bytes` accepts the type of `source`."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | BinaryFile)


def encoded_bytes(source: EncodedSource, max_bytes: int) -> bytes:
    """Returns the bytes of an encoded image.

    Reads at most `max_bytes` + 1 bytes of a file; the caller refuses a result of that length. Returns bytes that are
    given without a check of their length. Reads an open file from its current position, and does not close it.

    Raises UnreadableImageError if the file cannot be read, and ArgumentTypeError if `source` is no path, bytes or
    binary file.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return _read_file_at(os.fsdecode(source), max_bytes)
    if isinstance(source, BinaryFile):
        return _read_open_file(source, max_bytes)
    raise ArgumentTypeError(f"type {type(source).__name__} is no image: give {ENCODED}")


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
