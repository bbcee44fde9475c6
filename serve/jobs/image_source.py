"""Defines the interface of every kind of input of a job: it lists the images in a fixed order, and reads each later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO

from serve.errors import InputError, UnreadableError
from serve.jobs.rooted_files import Files
from tureen.tokens import Strength

MAX_NAME = 4096  # characters of a path or an id
SYSTEM_FOLDERS = ("__MACOSX",)
SYSTEM_FILES = ("_success", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")


@dataclass(frozen=True)
class InputImage:
    """One image of the input of a job.

    id, path: written into each row of the image. beta, strength: the β or the strength that the manifest gives for this
    image; None if it gives none. In the listing of a job, a strength is replaced by its β.
    location: how `ImageSource.read` finds the image: a path, an index, or an offset and a size in bytes.
    """

    id: str
    path: str
    beta: float | None
    location: str
    strength: Strength | None = None


class ImageSource(ABC):
    """Lists images and reads them. Any thread may call `read`. The caller of `open_source` closes the source."""

    is_sequential = False  # True: reading in another order than the listing is very slow

    def __init__(self) -> None:
        self.linked_folders: list[str] = []  # paths of links to folders that the listing has followed

    @abstractmethod
    def list_images(self) -> Iterator[InputImage]:
        """Yields every image, in the same order at each call.

        Raises InputError if the input cannot be listed, or if a row of a manifest is invalid.
        """

    @abstractmethod
    def read(self, image: InputImage, max_bytes: int) -> bytes:
        """Returns the bytes of an image.

        Raises ImageTooLargeError if it has more than `max_bytes`, and UnreadableError if it cannot be read.
        """

    def close(self) -> None:  # noqa: B027 - most sources have nothing to close
        """Closes the files that the source holds open."""


def open_input_file(files: Files, path: PurePath) -> BinaryIO:
    """Opens an archive or a manifest. Raises InputError if it cannot be opened."""
    try:
        return files.open(path)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from error


def is_excluded(name: str) -> bool:
    """Returns whether a path within the input is hidden, lies in a hidden folder, or is a system file."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part != ".." for part in parts) or is_system_file(name)


def is_system_file(name: str) -> bool:
    """Returns whether macOS, Windows or a batch job wrote the file for internal use. Such a file is no input image."""
    *folders, last = PurePosixPath(name).parts or ("",)
    return last.lower() in SYSTEM_FILES or any(part in SYSTEM_FOLDERS for part in (*folders, last))
