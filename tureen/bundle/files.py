"""Reads the files of an untrusted bundle.

A file must be regular, within its size limit, and of the size and SHA-256 that the caller gives. Checks the size of a
file before it reads a byte. Does not know the manifest or the meaning of the files.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from tureen.errors import BundleError, BundleFileError, printable

MAX_ARRAY_HEADER_BYTES: Final = 10_000  # of a .npy member; the default limit of NumPy

VERIFIED = "verified"
MISSING = "missing"
CHANGED = "changed"
TOO_LARGE = "too large"
NOT_REGULAR = "not a regular file"
LINK = "a symbolic link"
UNREADABLE = "cannot be read"


def read_file(path: Path, name: str, max_bytes: int, advice: str) -> bytes:
    """Returns the bytes of the regular file `name` in the directory `path`.

    Follows no link. Does not open a file that could block or have a side effect, such as a FIFO or a device. Raises
    BundleFileError if the file has more than `max_bytes` bytes, and as `file_size` does. advice: the end of the message
    if the file is too large.
    """
    file = path / name
    size = file_size(path, name)
    if size > max_bytes:
        raise _too_large(file, size, max_bytes, advice)
    try:
        # If the file was replaced after the check above, a link is still not followed and a FIFO does not block.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _not_regular(file)
            data = opened.read(size)
    except OSError as error:
        raise BundleFileError(f"{file} cannot be read", UNREADABLE) from error
    return data


def file_size(path: Path, name: str) -> int:
    """Returns the size in bytes of the regular file `name` in the directory `path`.

    Raises BundleFileError if the file is missing, unreadable or not regular, or if the file or a directory in `name` is
    a symbolic link.
    """
    for part in (*Path(name).parents[:-1], Path(name)):  # a directory in the bundle must not be a link either
        file = path / part
        try:
            status = file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise BundleFileError(f"{path / name} is missing: copy or export the bundle again", MISSING) from None
        except OSError as error:
            raise BundleFileError(f"{file} cannot be read", UNREADABLE) from error
        if stat.S_ISLNK(status.st_mode):
            raise BundleFileError(f"{file} is a symbolic link: copy the bundle with its files, as cp -L does", LINK)
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(file)
    return status.st_size


def read_verified(path: Path, name: str, *, size: int, sha256: str, max_bytes: int, advice: str) -> bytes:
    """Returns the bytes of the regular file `name` in the directory `path`, after a check of its size and SHA-256.

    size: the expected number of bytes; a file of another size is not read. sha256: the expected hash, hexadecimal.
    Raises BundleFileError if the file has another size or SHA-256, if the file or `size` exceeds `max_bytes`, and as
    `file_size` does. advice: the end of the message if the file is too large.
    """
    largest = max(size, file_size(path, name))
    if largest > max_bytes:
        raise _too_large(path / name, largest, max_bytes, advice)
    data = read_file(path, name, size, advice) if file_size(path, name) == size else None
    if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise BundleFileError(
            f"{path / name} is not what the manifest describes: copy or export the bundle again", CHANGED
        )
    return data


def read_arrays(file: Path, data: bytes, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the given names from the .npz file in `data`.

    Raises BundleError if an array is missing, damaged or compressed. So an array is never larger than the file. file:
    the path for the message.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: _read_array(archive, f"{name}.npy") for name in names}
    except BundleError:
        raise
    except Exception as error:  # zipfile and NumPy raise almost any exception for damaged input
        raise BundleError(f"{file} cannot be read: export the model again") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{name} is compressed, as export never does")
    stream = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = readers[version](stream, max_header_size=MAX_ARRAY_HEADER_BYTES)
    numbers = stream.read()
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects")
    return np.frombuffer(numbers, dtype).reshape(shape, order="F" if is_fortran else "C").copy()


def read_vectors(file: Path, data: bytes) -> dict[str, NDArray[Any]]:
    """Returns all arrays of the safetensors file in `data`, by name.

    Raises BundleError if the file is damaged or has a data type that NumPy lacks. file: the path for the message.
    """
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # KeyError: a data type that NumPy lacks
        raise BundleError(
            f"{file} is not a safetensors file of numbers that NumPy has: export the model again"
        ) from error


def invalid_content(file: Path | str, error: ValidationError) -> BundleError:
    """Returns the error for a file whose content does not fit its schema. Its message names the first wrong field."""
    first = error.errors()[0]
    where = printable(".".join(str(part) for part in first["loc"])) or "fields"
    return BundleError(f"{file}: {where}: {first['msg']}; export the model again")


def _too_large(file: Path, size: int, max_bytes: int, advice: str) -> BundleFileError:
    return BundleFileError(f"{file} has {size:,} bytes, the limit is {max_bytes:,}: {advice}", TOO_LARGE)


def _not_regular(file: Path) -> BundleFileError:
    return BundleFileError(f"{file} is not a regular file: copy or export the bundle again", NOT_REGULAR)
