"""Files that are there whole or not at all, whatever ends the process; never through a link that lies in the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO


def create(path: Path) -> IO[bytes]:
    """A new file to write, in place of whatever has the name."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def reopen(path: Path) -> BinaryIO:
    """A regular file that was made here, to read; raises OSError where a link or something else has its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return open(descriptor, "rb")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """The file with all that `write` writes: aside, synced, renamed, and the directory synced; raises OSError."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with create(aside) as file:
            write(file)
            sync(file)
        aside.rename(path)
        sync_directory(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def sync(file: IO[bytes]) -> None:
    """Make what was written durable."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the file system can sync a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
