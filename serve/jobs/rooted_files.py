"""Opens the files of jobs: any file of this machine, or only files below the root directories that an operator allows.

Below a root, opens a path component by component with openat(2), from the descriptor of the root, and follows no link.
So neither `..`, nor a link, nor a link that replaces a folder meanwhile leads out of the root. Refuses a file with a
second hard link, because its other name may lie outside the root. Refuses everything that is not a regular file.
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

JOB_FOLDER = "_job"  # the folder in an output directory that holds the files of the job itself
MAX_DEPTH = 64  # folders between a root and an output; a running job holds a descriptor for each
_CHUNK = 1 << 16  # bytes of one further read of a file that grows
_OPEN = os.O_RDONLY | os.O_CLOEXEC
_OPEN_FOLDER = _OPEN | os.O_DIRECTORY
_DESCRIPTORS = Path("/proc/self/fd")
_NO_DIRECTORY = "{} is not a directory, or its path contains a link: give another"


@dataclass(frozen=True)
class OutputDirectory:
    """The open output directory of a job.

    path, job_folder: paths of the directory and of its folder `_job`, for opening files in them; they may lie below
    /proc/self/fd. name: the path that the user gave, for messages. is_new: whether opening the directory created
    `job_folder`.
    """

    path: Path
    job_folder: Path
    name: str
    is_new: bool


class FolderEntry(NamedTuple):
    """An entry of a folder. is_folder: True for a folder; if links are followed, True for a link to a folder too."""

    name: str
    is_folder: bool
    is_link: bool  # whether the entry itself is a symbolic link


class FolderListing(NamedTuple):
    """The entries of a folder, sorted by name. identity: device and inode of the folder."""

    identity: tuple[int, int]
    entries: list[FolderEntry]


class Files:
    """Opens and lists any file that this process may read."""

    def open(self, path: PurePath) -> BinaryIO:
        """Opens a regular file for reading. Raises UnreadableError if it is missing, unreadable or not regular."""
        try:
            return open(self._open_descriptor(path)[0], "rb")
        except (OSError, ValueError) as error:
            raise _unreadable_error(error) from error

    def read(self, path: PurePath, max_bytes: int) -> bytes:
        """Returns the bytes of a regular file. Of a file with more than `max_bytes`, returns only the first of them.

        Then the result has more than `max_bytes` bytes. Raises UnreadableError if the file is missing, unreadable or
        not regular.
        """
        try:
            descriptor, size = self._open_descriptor(path)
            try:
                # Not open(…).read(max_bytes): it allocates and frees max_bytes, which takes longer than a small file.
                data = os.read(descriptor, min(size, max_bytes) + 1)
                while len(data) <= max_bytes and (more := os.read(descriptor, min(_CHUNK, max_bytes + 1 - len(data)))):
                    data += more
                return data
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise _unreadable_error(error) from error

    def _open_descriptor(self, path: PurePath) -> tuple[int, int]:
        """Opens a regular file for reading. Returns the descriptor, and the size of the file in bytes.

        Raises UnreadableError, OutsideRootsError, OSError or ValueError if it cannot be opened.
        """
        # O_NONBLOCK opens a FIFO without a wait for its writer; _check_regular then refuses the FIFO.
        return _check_regular(os.open(path, _OPEN | os.O_NONBLOCK), may_have_links=True)

    def list_folder(self, folder: Path) -> FolderListing:
        """Returns the entries of a folder. Raises InputError if it cannot be listed."""
        try:
            descriptor = os.open(folder, _OPEN_FOLDER)
            try:
                return _list_descriptor(descriptor, follows_links=True)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be listed: {getattr(error, 'strerror', error)}") from error

    def is_folder(self, path: Path) -> bool | None:
        """Returns True for a folder, False for a regular file, None for anything else."""
        return True if path.is_dir() else False if path.is_file() else None

    @contextmanager
    def open_output(self, output: Path) -> Iterator[OutputDirectory]:
        """Yields the output directory. Creates missing folders. Removes those that are empty after the block."""
        job_folder = output / JOB_FOLDER
        missing = [folder for folder in (job_folder, *job_folder.parents) if not folder.exists()]
        try:
            job_folder.mkdir(parents=True, exist_ok=True)
            yield OutputDirectory(output, job_folder, str(output), is_new=job_folder in missing)
        finally:
            for folder in missing:
                with suppress(OSError):  # a folder that holds a file stays
                    folder.rmdir()


class RootedFiles(Files):
    """Opens only files below root directories, even if an attacker can write there. Outputs require /proc of Linux."""

    def __init__(self, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
        """inputs, outputs: absolute root directories. A root may itself be a link."""
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def _open_descriptor(self, path: PurePath) -> tuple[int, int]:
        with _open_parent(path, self._inputs) as (parent, name):
            descriptor = os.open(name, _OPEN | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=parent)
            return _check_regular(descriptor, may_have_links=False)

    def list_folder(self, folder: Path) -> FolderListing:
        try:
            with _open_folder(folder, self._inputs) as descriptor:
                return _list_descriptor(descriptor, follows_links=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be listed: {getattr(error, 'strerror', error)}") from error

    def is_folder(self, path: Path) -> bool | None:
        try:
            with _open_parent(path, self._inputs) as (parent, name):
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except (OSError, ValueError):
            return None
        return True if stat.S_ISDIR(mode) else False if stat.S_ISREG(mode) else None

    def check_input(self, path: str) -> None:
        """Raises OutsideRootsError if no root for inputs contains the path. Does not access the disk."""
        _split(path, self._inputs)

    def check_output(self, path: str) -> None:
        """Checks the path of an output. Does not access the disk.

        Raises OutsideRootsError if the path is a root, or if no root for outputs contains it. Raises OutputError if the
        path is more than MAX_DEPTH folders below the root.
        """
        parts = _split(path, self._outputs)[1]
        if not parts:
            raise OutsideRootsError(path, self._outputs)
        if len(parts) > MAX_DEPTH:
            raise OutputError(f"{path[:64]}… is more than {MAX_DEPTH} folders deep: give a shorter path")

    def check_output_folders(self, path: str) -> None:
        """Raises OutputError if a component of an output's path is a link or a file. Missing components are allowed.

        Raises OutsideRootsError if no root for outputs contains the path.
        """
        root, parts = _split(path, self._outputs)
        try:
            with ExitStack() as stack:
                folder = _open_in(None, root, stack)
                for part in (*parts, JOB_FOLDER):
                    folder, _ = _enter_folder(folder, part, stack, create=False)
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise OutputError(_NO_DIRECTORY.format(path)) from error
        except OSError as error:
            raise OutputError(f"{path} cannot be opened: {error.strerror}") from error

    @contextmanager
    def open_output(self, output: Path, *, create: bool = True) -> Iterator[OutputDirectory]:
        """Yields the output directory, opened by descriptors. A folder that replaces it later receives no file.

        create: whether to create missing folders; those that are empty after the `with` block are removed. Raises the
        errors of `check_output`, OutputError if a component of the path is a link or a file, and FileNotFoundError for
        a missing folder if `create` is False.
        """
        self.check_output(str(output))
        root, parts = _split(str(output), self._outputs)
        with ExitStack() as stack:
            try:
                folder = _open_in(None, root, stack)
                for part in parts:
                    folder, _ = _enter_folder(folder, part, stack, create=create)
                job_folder, is_new = _enter_folder(folder, JOB_FOLDER, stack, create=create)
            except NotADirectoryError as error:
                raise OutputError(_NO_DIRECTORY.format(output)) from error
            yield OutputDirectory(
                _DESCRIPTORS / str(folder), _DESCRIPTORS / str(job_folder), str(output), is_new=is_new
            )


class RemoteFiles(Files):
    """Opens the files of an fsspec store, such as a bucket, by their paths in the store."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def open(self, path: PurePath) -> BinaryIO:
        try:
            file: BinaryIO = self._filesystem.open(str(path), "rb")
            return file
        except Exception as error:  # each store raises its own exceptions
            raise UnreadableError("its store cannot open it") from error

    def read(self, path: PurePath, max_bytes: int) -> bytes:
        with self.open(path) as file:
            try:
                return file.read(max_bytes + 1)
            except Exception as error:  # as in `open`
                raise UnreadableError(getattr(error, "strerror", None) or "it cannot be read") from error


def open_regular_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError if the path is a link or not a regular file."""
    descriptor = os.open(path, _OPEN | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return open(descriptor, "rb")


def _list_descriptor(folder: int, *, follows_links: bool) -> FolderListing:
    status = os.fstat(folder)
    with os.scandir(folder) as found:
        entries = [FolderEntry(entry.name, _is_folder(entry, follows_links), entry.is_symlink()) for entry in found]
    return FolderListing((status.st_dev, status.st_ino), sorted(entries))


def _is_folder(entry: os.DirEntry[str], follows_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follows_links)
    except OSError:  # a link to itself
        return False


def _split(path: str, roots: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """Returns the root that contains a path, and the components of the path below that root.

    Raises OutsideRootsError if no root contains the path, or if the path contains `..` or a null character.
    """
    if "\0" not in path and ".." not in path.split("/"):
        for root in roots:
            if Path(path).is_relative_to(root):
                return root, Path(path).relative_to(root).parts
    raise OutsideRootsError(path, roots)


@contextmanager
def _open_folder(folder: Path, roots: Sequence[Path]) -> Iterator[int]:
    """Yields the descriptor of a folder below a root. Follows no link."""
    root, parts = _split(str(folder), roots)
    descriptor = os.open(root, _OPEN_FOLDER)
    try:
        for part in parts:
            below = os.open(part, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _open_parent(path: PurePath, roots: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Yields the descriptor of the folder that contains a path, and the last component of the path.

    For a root, yields the descriptor of the root and `.`.
    """
    root, parts = _split(str(path), roots)
    if not parts:
        with _open_folder(root, roots) as descriptor:
            yield descriptor, "."
        return
    with _open_folder(root.joinpath(*parts[:-1]), roots) as descriptor:
        yield descriptor, parts[-1]


def _open_in(parent: int | None, name: str | Path, stack: ExitStack) -> int:
    """Returns the descriptor of the folder `name` in the folder with descriptor `parent`. The stack closes it.

    If `parent` is None, `name` is an absolute path, which may be a link. Otherwise a link raises NotADirectoryError.
    """
    descriptor = os.open(name, _OPEN_FOLDER | (0 if parent is None else os.O_NOFOLLOW), dir_fd=parent)
    stack.callback(os.close, descriptor)
    return descriptor


def _enter_folder(parent: int, name: str, stack: ExitStack, *, create: bool) -> tuple[int, bool]:
    """Returns the descriptor of a folder in `parent`, and whether this call created the folder.

    create: whether to create a missing folder. When the stack closes, it removes the created folder if it is empty.
    """
    is_new = False
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            is_new = True
    if is_new:
        stack.callback(_remove_empty, parent, name)
    return _open_in(parent, name, stack), is_new


def _remove_empty(parent: int, name: str) -> None:
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent)


def _check_regular(descriptor: int, *, may_have_links: bool) -> tuple[int, int]:
    """Returns the descriptor of a regular file, and the size of the file in bytes.

    Raises UnreadableError and closes the descriptor if it is not a regular file, or if the file has several hard links
    and `may_have_links` is False.
    """
    status = os.fstat(descriptor)
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and (may_have_links or status.st_nlink == 1):
        return descriptor, status.st_size
    os.close(descriptor)
    raise UnreadableError("it has a second name, a hard link" if is_regular else "it is not a regular file")


def _unreadable_error(error: Exception) -> UnreadableError:
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, OutsideRootsError):
        return UnreadableError("it is outside the directories for inputs")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return UnreadableError("it is a link that is not followed, or one that leads to itself")
    return UnreadableError(getattr(error, "strerror", None) or "it cannot be read")
