"""Writes files atomically: after a crash a file exists with all its content or not at all. Never follows a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO


def create(path: Path) -> IO[bytes]:
    """Opens a new file for writing. Removes an existing file of this name first."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def open_regular_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError where the path is a link or no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return open(descriptor, "rb")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a temporary file, syncs that file, renames it to `path`, and syncs the directory.

    Raises OSError. Removes the temporary file then.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with create(temporary) as file:
            write(file)
            sync(file)
        temporary.rename(path)
        sync_directory(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(file: IO[bytes]) -> None:
    """Makes the written content durable."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable, if the file system can sync directories."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
