"""Writes files atomically: a reader finds either the complete old or the complete new content, even after a crash.

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
    """Writes `data` to the file at `path`, by `atomic_file`. Replaces a file that exists there.

    `atomic_file` documents `mode`, `has_other_writers`, the guarantees and the errors.
    """
    with atomic_file(path, mode=mode, has_other_writers=has_other_writers) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666, has_other_writers: bool = False) -> Iterator[IO[bytes]]:
    """Yields a temporary file beside `path`, open for writing. Renames it to `path` when the `with` block ends.

    Syncs the file and its directory to the disk. If the block raises, removes the temporary file and does not change
    `path`. Follows no symbolic link at `path` or at the temporary name. Raises OSError if the file system fails.

    mode: permissions of the file, reduced by the umask. has_other_writers: whether other processes may write the same
    file at the same time; the temporary file then has a random name. If this process is killed, the temporary file
    remains. Without other writers, the next write to `path` removes it.
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
    """Flushes the written bytes of the open file to the disk, and waits for the disk. Raises OSError if that fails."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Writes the file names in the directory to the disk, and waits for the disk. Raises OSError if that fails.

    Has no effect if the system or the file system cannot sync a directory.
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
