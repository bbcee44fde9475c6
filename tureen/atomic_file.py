"""Writes files atomically: a reader finds the complete old or the complete new content, also after a crash.

Knows nothing about the content.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666, has_other_writers: bool = False) -> None:
    """Replaces the file at `path` by one with the content `data`.

    The other parameters, the guarantees and the errors are those of `atomic_file`.
    """
    with atomic_file(path, mode=mode, has_other_writers=has_other_writers) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666, has_other_writers: bool = False) -> Iterator[IO[bytes]]:
    """Yields a temporary file beside `path`, open for writing. Renames it to `path` when the block ends.

    Syncs the file and the directory. If the block raises, removes the temporary file and does not change `path`.
    mode: permissions of the file, reduced by the umask. has_other_writers: whether other processes may write the same
    file at the same time. If so, the temporary file has a random name, and remains if this process is killed. If not,
    the next writer removes it. Follows no link at either name. Raises OSError if the file system fails.
    """
    suffix = f".{secrets.token_hex(4)}" if has_other_writers else ""
    temporary = path.with_name(f".{path.name}{suffix}.part")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            sync_file(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(file: IO[bytes]) -> None:
    """Makes the written bytes of the file durable. Raises OSError if the disk fails."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes the file names in the directory durable, if the file system can sync a directory.

    Raises OSError if the disk fails.
    """
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
