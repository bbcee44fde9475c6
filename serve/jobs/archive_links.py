"""Resolves the symbolic and hard links of a tar or zip archive by name. Ignores links that lead out of the archive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import PurePath

from serve.errors import InputError
from serve.jobs.image_source import MAX_NAME, InputImage, is_excluded

MAX_LINKS = 100_000  # links of one archive, all held in memory
MAX_LINKS_PER_PATH = 40  # links that one path follows, the limit of Linux
MAX_FOLDERS = 256  # folders in a name or in the target of a link; a tree on a disk has tens
MAX_STEPS = 5_000_000  # folders on the paths of all links of one archive; seconds of work


class ArchiveLinks:
    """Finds the files to which the links of an archive lead, from the names in the archive.

    Call `add` for each link, then `resolve`, then `add_target` for each file and folder, then `images`.
    """

    def __init__(self, path: PurePath) -> None:
        self._path = path
        self._targets: dict[str, tuple[str, bool]] = {}  # by link; True: relative to the root of the archive
        self._steps = 0
        self._final_names: dict[str, str | None] = {}  # final name by link; None: the link leads nowhere
        self._files: dict[str, str] = {}  # location of each file that a link leads to
        self._folders: dict[str, list[tuple[str, str]]] = {}  # (name, location) in each folder that a link leads to
        self._links: dict[str, list[str]] = {}  # links in such a folder

    def __bool__(self) -> bool:
        return bool(self._targets)

    def add(self, name: str, target: str, *, is_hard: bool = False) -> None:
        """Adds a link. name: path of the link. target: path relative to the folder of the link.

        is_hard: whether it is a hard link; then the target is relative to the root of the archive. Raises InputError if
        the archive has more than MAX_LINKS links.
        """
        if len(self._targets) == MAX_LINKS:
            raise InputError(f"{self._path} has more than {MAX_LINKS:,} links: unpack it and give the folder")
        is_dead = len(target) > MAX_NAME or target.count("/") > MAX_FOLDERS
        self._targets[name] = "" if is_dead else target, is_hard

    def resolve(self) -> None:
        """Computes the final name of each added link: the path of its target after all links on the way are followed.

        Raises InputError if the paths of all links together have more than MAX_STEPS folders.
        """
        self._final_names = {name: self._final_name(name) for name in self._targets}
        self._target_names = {target for target in self._final_names.values() if target}
        for name in self._targets:
            for folder in self._target_folders_of(name):
                self._links.setdefault(folder, []).append(name)

    def add_target(self, name: str, location: str | None) -> None:
        """Records the file or folder `name` if a link leads to it, or to a folder that contains it. Else ignores it.

        location: `InputImage.location` of the file; None for a folder.
        """
        if name in self._target_names:
            if location is None:
                self._folders.setdefault(name, [])
            else:
                self._files[name] = location
        for folder in self._target_folders_of(name):
            below = self._folders.setdefault(folder, [])
            if location is not None:
                below.append((name, location))

    def images(self) -> Iterator[InputImage]:
        """Yields an image for each link to a file, for each file in a linked folder, and for each dead link.

        A dead link has no target in the archive. The location of its image is empty.
        """
        for name in sorted(self._final_names, key=self._position):
            if self._is_loop(name):
                continue
            target = self._final_names[name]
            if target not in self._folders:
                yield from _images(name, self._files.get(target or "", ""))
                continue
            for file, location in self._folders[target]:
                yield from _images(f"{name}/{file.removeprefix(f'{target}/')}", location)
            for link in self._links.get(target, ()):
                if not self._is_loop(link):
                    yield from _images(
                        f"{name}/{link.removeprefix(f'{target}/')}", self._files.get(self._final_names[link] or "", "")
                    )

    def _is_loop(self, name: str) -> bool:
        """Returns whether a link leads to a folder that contains the link. Such a link yields no image."""
        target = self._final_names[name]
        return target is not None and f"/{name}/".startswith(f"/{target}/" if target else "/")

    def _position(self, name: str) -> int:
        """Returns the sort key of a link: the byte offset of its target in a tar, or the index of its target in a zip.

        Returns 0 for a dead link. With images in this order, a compressed archive is read once from front to back.
        """
        target = self._final_names[name] or ""
        first = self._files.get(target) or next((location for _, location in self._folders.get(target, ())), "")
        return int(first.lstrip("@").partition(":")[0] or 0)

    def _target_folders_of(self, name: str) -> Iterator[str]:
        """Yields each folder on the path `name`, the outermost first, that is the target of a link."""
        at = name.find("/")
        while at >= 0:
            if name[:at] in self._target_names:
                yield name[:at]
            at = name.find("/", at + 1)

    def _final_name(self, name: str) -> str | None:
        """Returns the path of the target of the link `name` after all links on the path are followed.

        Returns None if the path leaves the archive, or has more than MAX_LINKS_PER_PATH links. Raises InputError if the
        paths of all links together have more than MAX_STEPS folders.
        """
        ahead, behind, followed = deque(name.split("/")), list[str](), 0
        while ahead:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise InputError(
                    f"{self._path}: its links lead through too many folders: unpack it and give the folder"
                )
            part = ahead.popleft()
            if part == "..":
                if not behind:
                    return None
                behind.pop()
                continue
            behind.append(part)
            target, is_hard = self._targets.get("/".join(behind), (None, False))
            if target is None:
                continue
            followed += 1
            if followed > MAX_LINKS_PER_PATH or not target or (target.startswith("/") and not is_hard):
                return None
            behind.pop()
            if is_hard:
                behind.clear()
            ahead.extendleft(reversed(path_parts(target)))
        return "/".join(behind)


def _images(name: str, location: str) -> Iterator[InputImage]:
    if not is_excluded(name):
        yield InputImage(name, name, None, location)


def path_parts(path: str) -> list[str]:
    """Returns the components of a path, without `.` and empty ones."""
    return [part for part in path.split("/") if part not in ("", ".")]
