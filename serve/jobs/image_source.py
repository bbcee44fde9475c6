"""What every kind of input has in common: it lists its images in one order and reads any of them later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO

from serve.errors import InputError, UnreadableError
from serve.jobs.rooted_files import Files

MAX_NAME = 4096  # characters of a path or an id
SYSTEM_FOLDERS = ("__MACOSX",)
SYSTEM_FILES = ("_success", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")


@dataclass(frozen=True)
class Item:
    """One image of the input. where: what its source needs to find it again."""

    id: str
    path: str
    beta: float | None  # the manifest's own for it
    where: str


class Source(ABC):
    """Lists images, and reads them from any thread; closed by the code that opened it."""

    is_sequential = False  # reading in another order than listed is very slow

    def __init__(self) -> None:
        self.linked_folders: list[str] = []  # paths of the links that the listing followed into a folder

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Every image, in the same order each time; raises InputError."""

    @abstractmethod
    def read(self, item: Item, most: int) -> bytes:
        """The bytes of an image; raises ImageTooLargeError beyond `most`, or UnreadableError."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Read no more."""


def opened(files: Files, path: PurePath) -> BinaryIO:
    """An archive or a manifest; raises InputError."""
    try:
        return files.open(path)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from error


def is_left_out(name: str) -> bool:
    """Whether a path within the input is of a hidden file, in a hidden folder, or of a file that no person made."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part != ".." for part in parts) or is_made_by_system(name)


def is_made_by_system(name: str) -> bool:
    """Whether macOS, Windows or a batch job itself made the file, for purposes other than being an image."""
    *folders, last = PurePosixPath(name).parts or ("",)
    return last.lower() in SYSTEM_FILES or any(part in SYSTEM_FOLDERS for part in (*folders, last))
