"""Writes a file so that a reader, or a restart after a crash, finds all of the old content or all of the new one.

Knows nothing of what files hold.
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
    """Replaces the file at `path` by one with these bytes; the parameters and errors are those of `atomic_file`."""
    with atomic_file(path, mode=mode, has_other_writers=has_other_writers) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666, has_other_writers: bool = False) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, open for writing; renamed to `path` when the block ends.

    File and directory are synced. If the block raises, the temporary file is removed and `path` stays as it is.
    mode: permissions of the file, reduced by the umask. has_other_writers: whether other processes may write the same
    file at the same time. If so, the temporary file has a random name, and remains if this process is killed. If not,
    the next writer removes it. No link at either name is followed. Raises OSError.
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
    """Makes what was written to the file durable; raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes the names in the directory durable, if the file system can sync a directory; raises OSError."""
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
