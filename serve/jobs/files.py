"""The files that jobs read and write: any of this machine, or none but those below an operator's roots.

Below roots a path is walked component by component from the root's own descriptor and no link is followed, so that
neither `..`, nor a link, nor one that is put in a folder's place meanwhile leads out. What is below a root by another
name too, a hard link, is refused, and so is what is no regular file. After Linux' openat(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from serve.jobs.errors import InputError, OutputError, OutsideRootsError, UnreadableError

OWN = "_job"  # the directory in an output that is the job's own
_OPEN = os.O_RDONLY | os.O_CLOEXEC
_FOLDER = _OPEN | os.O_DIRECTORY
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Place:
    """Where a job is. output, own: to open files by; name: to tell people."""

    output: Path
    own: Path
    name: str


class Files:
    """Every file that this process may read."""

    def open(self, path: PurePath) -> BinaryIO:
        """A regular file, to read; raises UnreadableError."""
        try:
            # A FIFO is opened without waiting for whoever would write to it, and then refused.
            return _regular(os.open(path, _OPEN | os.O_NONBLOCK), may_have_links=True)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    def scan(self, folder: Path) -> list[tuple[str, bool]]:
        """The names in a folder, in order, and which are folders; links to folders are left out. Raises InputError."""
        try:
            with os.scandir(folder) as found:
                return _scanned(found)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be listed: {getattr(error, 'strerror', error)}") from error

    def is_folder(self, path: Path) -> bool | None:
        """Whether a path names a folder or a regular file; None where it names neither."""
        return True if path.is_dir() else False if path.is_file() else None

    @contextmanager
    def place(self, output: Path) -> Iterator[Place]:
        """An output directory, made where it is not there."""
        (output / OWN).mkdir(parents=True, exist_ok=True)
        yield Place(output, output / OWN, str(output))


class Rooted(Files):
    """The files below some directories, whatever those who can write there do. Linux's /proc is needed for outputs."""

    def __init__(self, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
        """The directories that inputs and outputs may be in, absolute; they themselves may be links."""
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def open(self, path: PurePath) -> BinaryIO:
        try:
            with _opened(path, self._inputs) as (parent, name):
                descriptor = os.open(name, _OPEN | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=parent)
                return _regular(descriptor, may_have_links=False)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    def scan(self, folder: Path) -> list[tuple[str, bool]]:
        try:
            with _descended(folder, self._inputs) as descriptor, os.scandir(descriptor) as found:
                return _scanned(found)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be listed: {getattr(error, 'strerror', error)}") from error

    def is_folder(self, path: Path) -> bool | None:
        try:
            with _opened(path, self._inputs) as (parent, name):
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except (OSError, ValueError):
            return None
        return True if stat.S_ISDIR(mode) else False if stat.S_ISREG(mode) else None

    def check_input(self, path: str) -> None:
        """Raises OutsideRootsError where a path is below no root for inputs."""
        _split(path, self._inputs)

    def check_output(self, path: str) -> None:
        """Raises OutsideRootsError where a path is below no root for outputs, or is one itself."""
        if not _split(path, self._outputs)[1]:
            raise OutsideRootsError(path, self._outputs)

    @contextmanager
    def place(self, output: Path, *, make: bool = True) -> Iterator[Place]:
        """Held by descriptors: whatever is put in a folder's place meanwhile, files go into the folder that was opened.

        make: where it is not there. Raises OutsideRootsError, OutputError, or else FileNotFoundError.
        """
        self.check_output(str(output))
        try:
            with _descended(output, self._outputs, make=make) as folder, _within(folder, OWN, make=make) as own:
                yield Place(_DESCRIPTORS / str(folder), _DESCRIPTORS / str(own), str(output))
        except NotADirectoryError as error:
            raise OutputError(f"{output} is no directory, or leads over a link: give another") from error


class StoredFiles(Files):
    """The files of a store that fsspec reaches, by their paths there."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def open(self, path: PurePath) -> BinaryIO:
        try:
            file: BinaryIO = self._filesystem.open(str(path), "rb")
            return file
        except Exception as error:  # each store has its own
            raise UnreadableError("it cannot be read from there") from error


def _scanned(found: Iterator[os.DirEntry[str]]) -> list[tuple[str, bool]]:
    entries = sorted(found, key=lambda entry: entry.name)
    folders = [(entry, entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [(entry.name, is_folder) for entry, is_folder in folders if is_folder or not _leads_to_folder(entry)]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _split(path: str, roots: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """The root that a path is below, and the components from there; raises OutsideRootsError."""
    if "\0" not in path and ".." not in path.split("/"):
        for root in roots:
            if Path(path).is_relative_to(root):
                return root, Path(path).relative_to(root).parts
    raise OutsideRootsError(path, roots)


@contextmanager
def _descended(folder: Path, roots: Sequence[Path], *, make: bool = False) -> Iterator[int]:
    """The descriptor of a folder below a root, each step a real folder; make: those that are not there."""
    root, parts = _split(str(folder), roots)
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts:
            below = _step(descriptor, part, make=make)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: PurePath, roots: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """The descriptor of the folder that a path is in, and its name there; of a root itself, `.`."""
    root, parts = _split(str(path), roots)
    if not parts:
        with _descended(root, roots) as descriptor:
            yield descriptor, "."
        return
    with _descended(root.joinpath(*parts[:-1]), roots) as descriptor:
        yield descriptor, parts[-1]


@contextmanager
def _within(folder: int, name: str, *, make: bool) -> Iterator[int]:
    descriptor = _step(folder, name, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _step(folder: int, name: str, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def _regular(descriptor: int, *, may_have_links: bool) -> BinaryIO:
    """The file of a descriptor, which is closed where it is none; raises UnreadableError."""
    status = os.fstat(descriptor)
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and (may_have_links or status.st_nlink == 1):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise UnreadableError("it has another name too, a hard link" if is_regular else "it is no regular file")


def _unreadable(error: Exception) -> UnreadableError:
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, OutsideRootsError):
        return UnreadableError("it is outside the directories for inputs")
    return UnreadableError(getattr(error, "strerror", None) or "it cannot be read")
