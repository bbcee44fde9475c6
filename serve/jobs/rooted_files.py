"""The files that jobs read and write: any of this machine, or none but those below an operator's roots.

Below roots a path is walked component by component from the root's own descriptor and no link is followed, so that
neither `..`, nor a link, nor one that is put in a folder's place meanwhile leads out. What is below a root by another
name too, a hard link, is refused, and so is what is no regular file. After Linux' openat(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from serve.errors import InputError, OutputError, OutsideRootsError, UnreadableError

OWN = "_job"  # the directory in an output that is the job's own
MAX_DEPTH = 64  # folders of an output below its root, each of which takes a descriptor while the job runs
_OPEN = os.O_RDONLY | os.O_CLOEXEC
_FOLDER = _OPEN | os.O_DIRECTORY
_DESCRIPTORS = Path("/proc/self/fd")
_NO_DIRECTORY = "{} is no directory, or leads over a link: give another"


@dataclass(frozen=True)
class Place:
    """Where a job is. output, own: to open files by; name: to tell people; is_new: own was made just now."""

    output: Path
    own: Path
    name: str
    is_new: bool


class Entry(NamedTuple):
    """A name in a folder. is_folder: also of a link to one, where links are followed."""

    name: str
    is_folder: bool
    is_link: bool


class Listing(NamedTuple):
    """A folder's entries by name. identity: its device and inode, however it was reached."""

    identity: tuple[int, int]
    entries: list[Entry]


class Files:
    """Every file that this process may read."""

    def open(self, path: PurePath) -> BinaryIO:
        """A regular file, to read; raises UnreadableError."""
        try:
            # A FIFO is opened without waiting for whoever would write to it, and then refused.
            return _regular(os.open(path, _OPEN | os.O_NONBLOCK), may_have_links=True)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    def scan(self, folder: Path) -> Listing:
        """What is in a folder; raises InputError."""
        try:
            descriptor = os.open(folder, _FOLDER)
            try:
                return _scanned(descriptor, follows_links=True)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be listed: {getattr(error, 'strerror', error)}") from error

    def is_folder(self, path: Path) -> bool | None:
        """Whether a path names a folder or a regular file; None where it names neither."""
        return True if path.is_dir() else False if path.is_file() else None

    @contextmanager
    def place(self, output: Path) -> Iterator[Place]:
        """An output directory, made where it is not there, and removed again where it stays empty."""
        own = output / OWN
        missing = [folder for folder in (own, *own.parents) if not folder.exists()]
        try:
            own.mkdir(parents=True, exist_ok=True)
            yield Place(output, own, str(output), is_new=own in missing)
        finally:
            for folder in missing:
                with suppress(OSError):  # one that holds a file stays
                    folder.rmdir()


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

    def scan(self, folder: Path) -> Listing:
        try:
            with _descended(folder, self._inputs) as descriptor:
                return _scanned(descriptor, follows_links=False)
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
        """Raises OutsideRootsError where a path is below no root for outputs, or is one itself; or OutputError."""
        parts = _split(path, self._outputs)[1]
        if not parts:
            raise OutsideRootsError(path, self._outputs)
        if len(parts) > MAX_DEPTH:
            raise OutputError(f"{path[:64]}… is more than {MAX_DEPTH} folders deep: give a shorter path")

    def check_way(self, path: str) -> None:
        """Raises OutputError where a link or a file lies in the way of an output, as far as its folders are there."""
        root, parts = _split(path, self._outputs)
        try:
            with ExitStack() as stack:
                folder = _open(root, stack)
                for part in (*parts, OWN):
                    folder, _ = _step(folder, part, stack, make=False)
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise OutputError(_NO_DIRECTORY.format(path)) from error
        except OSError as error:
            raise OutputError(f"{path} cannot be opened: {error.strerror}") from error

    @contextmanager
    def place(self, output: Path, *, make: bool = True) -> Iterator[Place]:
        """Held by descriptors: whatever is put in a folder's place meanwhile, files go into the folder that was opened.

        make: where it is not there; what stays empty is removed again. Raises OutsideRootsError, OutputError, or else
        FileNotFoundError.
        """
        self.check_output(str(output))
        root, parts = _split(str(output), self._outputs)
        with ExitStack() as stack:
            try:
                folder = _open(root, stack)
                for part in parts:
                    folder, _ = _step(folder, part, stack, make=make)
                own, is_new = _step(folder, OWN, stack, make=make)
            except NotADirectoryError as error:
                raise OutputError(_NO_DIRECTORY.format(output)) from error
            yield Place(_DESCRIPTORS / str(folder), _DESCRIPTORS / str(own), str(output), is_new)


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


def _scanned(folder: int, *, follows_links: bool) -> Listing:
    status = os.fstat(folder)
    with os.scandir(folder) as found:
        entries = [Entry(entry.name, _is_folder(entry, follows_links), entry.is_symlink()) for entry in found]
    return Listing((status.st_dev, status.st_ino), sorted(entries))


def _is_folder(entry: os.DirEntry[str], follows_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follows_links)
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
def _descended(folder: Path, roots: Sequence[Path]) -> Iterator[int]:
    """The descriptor of a folder below a root, each step a real folder."""
    root, parts = _split(str(folder), roots)
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
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


def _open(name: str | Path, stack: ExitStack, parent: int | None = None) -> int:
    """The descriptor of a folder, which may be a link only where there is no parent, until the stack is left."""
    descriptor = os.open(name, _FOLDER | (0 if parent is None else os.O_NOFOLLOW), dir_fd=parent)
    stack.callback(os.close, descriptor)
    return descriptor


def _step(parent: int, name: str, stack: ExitStack, *, make: bool) -> tuple[int, bool]:
    """The descriptor of a folder in another, and whether it was made here; if so it goes with the stack where empty."""
    is_new = False
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            is_new = True
    if is_new:
        stack.callback(_remove_empty, parent, name)
    return _open(name, stack, parent), is_new


def _remove_empty(parent: int, name: str) -> None:
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent)


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
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return UnreadableError("it is a link that is not followed, or one that leads to itself")
    return UnreadableError(getattr(error, "strerror", None) or "it cannot be read")
