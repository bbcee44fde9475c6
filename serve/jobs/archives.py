"""The images of a tar or a zip, as GNU tar, macOS, Windows and the usual tools write them.

Names are as they would be in a folder: without `./`, separated by slashes. A link gives the rows that it would give in
a folder, but never leads out of the archive.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from serve.errors import InputError, UnreadableError
from serve.jobs.image_source import MAX_NAME, Item, Source, is_left_out, opened
from serve.jobs.rooted_files import Files, StoredFiles
from tureen.errors import ImageTooLargeError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_LINKS = 100_000  # of one archive, since they are held in memory
MAX_FOLLOWED = 40  # links in the way of one path, as Linux has it
MAX_FOLDERS = 256  # that a name lies below, or a link's target names; a tree on a disk has tens
MAX_STEPS = 5_000_000  # folders that all links of one archive lead through; seconds of work
MAX_HEADER = 1 << 20  # bytes of one extended header of a tar
_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
_DEAD_LINK = "it is a link to something that is not in the archive, or to a folder behind another link"

# PKWARE's APPNOTE.TXT, 4.3 and 4.4
_LOCAL_HEADER = b"PK\x03\x04"
_ENCRYPTED, _UTF8 = 0x1, 0x800  # general purpose bits
_DOS, _UNIX, _HPFS, _NTFS, _VFAT, _MACOS = 0, 3, 6, 10, 14, 19  # version made by
_DOS_FOLDER = 0x10  # an external attribute
_UNICODE_PATH = 0x7075  # an extra field


class Tar(Source):
    """The files of a tar; a compressed one is read from front to back, again from the front where need be."""

    def __init__(self, path: PurePath, files: Files) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        self._file = opened(files, path)
        self._is_plain = path.suffix.lower() == ".tar"
        self._can_pread = self._is_plain and not isinstance(files, StoredFiles)
        self.is_sequential = not self._is_plain
        self._data = self._file if self._is_plain else _DECOMPRESSORS[path.suffix.lower()](self._file)

    def items(self) -> Iterator[Item]:
        """The files in their order, then the links in the order of what they lead to."""
        links = Links(self._path)
        for member in self._members():
            name = _name(member.name, self._path)
            if member.islnk() or member.issym():
                links.add(name, member.linkname, is_hard=member.islnk())
            elif member.isfile() and not is_left_out(name):
                yield Item(name, name, None, _where(member))
        if not links:
            return
        links.resolve()
        for member in self._members():
            if member.isfile() or member.isdir():
                links.meet(_name(member.name, self._path), None if member.isdir() else _where(member))
        yield from links.items()

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            self._data.seek(0)
            with tarfile.open(fileobj=_Headers(self._data), mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    yield member
                    archive.members.clear()  # which grows with every one
                end = archive.offset
            self._data.seek(end)
            while block := self._data.read(1 << 20):  # tarfile takes a damaged header for the end
                if block.strip(b"\0"):
                    raise InputError(f"{self._path} is damaged at byte {end:,}, or another archive begins there")
        except _DAMAGED as error:
            raise InputError(f"{self._path} cannot be read as a tar: {error}") from error

    def read(self, item: Item, most: int) -> bytes:
        if not item.where:
            raise UnreadableError(_DEAD_LINK)
        try:
            if item.where.startswith("@"):
                return self._read_sparse(int(item.where[1:]), most)
            offset, size = map(int, item.where.split(":"))
            if size > most:
                raise ImageTooLargeError("bytes", most)
            if self._can_pread:
                data = os.pread(self._file.fileno(), size, offset)
            else:
                with self._lock:
                    self._data.seek(offset)
                    data = self._data.read(size)
        except _DAMAGED as error:
            raise UnreadableError("the archive cannot be read there") from error
        if len(data) < size:
            raise UnreadableError("the archive ends before the image does")
        return data

    def _read_sparse(self, offset: int, most: int) -> bytes:
        """The bytes of the file whose headers begin there, its holes filled with zeros."""
        with self._lock:
            self._data.seek(offset)
            with tarfile.open(fileobj=_Headers(self._data, max(most, MAX_HEADER)), mode="r:") as archive:  # type: ignore[call-overload]
                member = archive.next()
                if member is None or not member.isfile():
                    raise UnreadableError("the archive has changed there")
                if member.size > most:
                    raise ImageTooLargeError("bytes", most)
                data: bytes = archive.extractfile(member).read()
                return data

    def close(self) -> None:
        self._data.close()
        self._file.close()


class _Headers:
    """A file for tarfile, which reads whole headers into memory, however large they say they are."""

    def __init__(self, file: BinaryIO, most: int = MAX_HEADER) -> None:
        self._file, self._most, self.seek, self.tell = file, most, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise tarfile.ReadError(f"a header of more than {self._most:,} bytes")
        return self._file.read(size)


class Zip(Source):
    """The files of a zip."""

    def __init__(self, path: PurePath, files: Files) -> None:
        super().__init__()
        self._path = path
        self._file = opened(files, path)
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._members = self._archive.infolist()
            self._file.seek(0)
            begins_with_member = self._file.read(len(_LOCAL_HEADER)) == _LOCAL_HEADER
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error) as error:
            self._file.close()
            raise InputError(f"{path} is no zip, or a damaged one, or was cut before its end") from error
        try:
            # Of a zip that was cut, the directory at its end may be that of another zip, which is stored in it.
            if begins_with_member and all(member.header_offset for member in self._members):
                raise InputError(f"{path} was cut or is damaged: its directory does not name the file it begins with")
            self._check_passwords()
        except InputError:
            self.close()
            raise

    def _check_passwords(self) -> None:
        """Raises InputError where every file needs a password."""
        images = [member for member in self._members if not _is_folder(member)]
        if images and all(member.flag_bits & _ENCRYPTED for member in images):
            raise InputError(f"{self._path} is encrypted: unpack it with its password and give the folder")

    def items(self) -> Iterator[Item]:
        """The files in their order, then the links."""
        links = Links(self._path)
        for n, member in enumerate(self._members):
            name = _name(_name_in_zip(member), self._path)
            if _is_link(member):
                links.add(name, self._target(member))
            elif not _is_folder(member) and not is_left_out(name):
                yield Item(name, name, None, str(n))
        if not links:
            return
        links.resolve()
        for n, member in enumerate(self._members):
            if not _is_link(member):
                links.meet(_name(_name_in_zip(member), self._path), None if _is_folder(member) else str(n))
        yield from links.items()

    def _target(self, member: zipfile.ZipInfo) -> str:
        """Where a link leads; nowhere where that cannot be read."""
        try:
            return self._read(member, MAX_NAME).decode("utf-8", "surrogateescape")
        except (ImageTooLargeError, UnreadableError):
            return ""

    def read(self, item: Item, most: int) -> bytes:
        if not item.where:
            raise UnreadableError(_DEAD_LINK)
        return self._read(self._members[int(item.where)], most)

    def _read(self, member: zipfile.ZipInfo, most: int) -> bytes:
        if member.flag_bits & _ENCRYPTED:
            raise UnreadableError("it is encrypted in the archive")
        try:
            with self._archive.open(member) as file:
                data = file.read(most + 1)  # whatever its head says of the size
        except NotImplementedError as error:
            raise UnreadableError("it is compressed in a way that is not read here: use deflate") from error
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
            raise UnreadableError("the archive cannot be read there") from error
        except Exception as error:  # zlib's, lzma's and bz2's own, which have no common base
            raise UnreadableError("the archive is damaged there") from error
        if len(data) > most:
            raise ImageTooLargeError("bytes", most)
        return data

    def close(self) -> None:
        self._archive.close()
        self._file.close()


class Links:
    """The links of an archive, resolved by name within it. First add them all, then resolve, then meet the rest."""

    def __init__(self, path: PurePath) -> None:
        self._path = path
        self._targets: dict[str, tuple[str, bool]] = {}  # of each link, and whether it counts from the archive's root
        self._steps = 0
        self._real: dict[str, str | None] = {}  # name that each link leads to in the end; None: out, or in a circle
        self._files: dict[str, str] = {}  # where those files are that links lead to
        self._folders: dict[str, list[tuple[str, str]]] = {}  # names in each folder that links lead to, and where
        self._links: dict[str, list[str]] = {}  # those that are in such a folder

    def __bool__(self) -> bool:
        return bool(self._targets)

    def add(self, name: str, target: str, *, is_hard: bool = False) -> None:
        if len(self._targets) == MAX_LINKS:
            raise InputError(f"{self._path} has more than {MAX_LINKS:,} links: unpack it and give the folder")
        is_dead = len(target) > MAX_NAME or target.count("/") > MAX_FOLDERS
        self._targets[name] = "" if is_dead else target, is_hard

    def resolve(self) -> None:
        """Find what each link leads to, from the links alone."""
        self._real = {name: self._followed(name) for name in self._targets}
        self._led_to = {real for real in self._real.values() if real}
        for name in self._targets:
            for folder in self._led_to_above(name):
                self._links.setdefault(folder, []).append(name)

    def meet(self, name: str, where: str | None) -> None:
        """Keep what links lead to: a file, or a folder, which has no `where`."""
        if name in self._led_to:
            if where is None:
                self._folders.setdefault(name, [])
            else:
                self._files[name] = where
        for folder in self._led_to_above(name):
            below = self._folders.setdefault(folder, [])
            if where is not None:
                below.append((name, where))

    def items(self) -> Iterator[Item]:
        """A row for each link to a file, one for each file of a folder that a link leads to, one for a dead link."""
        for name in sorted(self._real, key=self._position):
            if self._is_circle(name):
                continue
            real = self._real[name]
            if real not in self._folders:
                yield from _rows(name, self._files.get(real or "", ""))
                continue
            for file, where in self._folders[real]:
                yield from _rows(f"{name}/{file.removeprefix(f'{real}/')}", where)
            for link in self._links.get(real, ()):
                if not self._is_circle(link):
                    yield from _rows(
                        f"{name}/{link.removeprefix(f'{real}/')}", self._files.get(self._real[link] or "", "")
                    )

    def _is_circle(self, name: str) -> bool:
        """Whether a link leads to a folder that it is in, whose files are listed in any case."""
        real = self._real[name]
        return real is not None and f"/{name}/".startswith(f"/{real}/" if real else "/")

    def _position(self, name: str) -> int:
        """Of what a link leads to, in the archive: one that is compressed is then read from front to back."""
        real = self._real[name] or ""
        first = self._files.get(real) or next((where for _, where in self._folders.get(real, ())), "")
        return int(first.lstrip("@").partition(":")[0] or 0)

    def _led_to_above(self, name: str) -> Iterator[str]:
        """The folders that a name is in and a link leads to."""
        at = name.find("/")
        while at >= 0:
            if name[:at] in self._led_to:
                yield name[:at]
            at = name.find("/", at + 1)

    def _followed(self, name: str) -> str | None:
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
            if followed > MAX_FOLLOWED or not target or (target.startswith("/") and not is_hard):
                return None
            behind.pop()
            if is_hard:
                behind.clear()
            ahead.extendleft(reversed(_parts(target)))
        return "/".join(behind)


def _rows(name: str, where: str) -> Iterator[Item]:
    if not is_left_out(name):
        yield Item(name, name, None, where)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _name(given: str, archive: PurePath) -> str:
    """A member's name as it would be in a folder; raises InputError."""
    if len(given) > MAX_NAME:
        raise InputError(f"{archive}: a name has more than {MAX_NAME:,} characters")
    parts = _parts(given)
    if len(parts) > MAX_FOLDERS:
        raise InputError(f"{archive}: a name lies below more than {MAX_FOLDERS} folders")
    return "/".join(parts)


def _where(member: tarfile.TarInfo) -> str:
    """Where the bytes of a tar's file are, or of a sparse one its headers."""
    return f"@{member.offset}" if member.issparse() else f"{member.offset_data}:{member.size}"


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """A member's name, in UTF-8 also where its tool does not say so, with slashes where Windows' tools put backslashes.

    Info-ZIP and macOS write UTF-8 without saying so, and Info-ZIP repeats it in an extra field.
    """
    name, is_guessed = member.filename, False
    if not member.flag_bits & _UTF8 and not name.isascii():
        try:
            raw = name.encode("cp437")  # as zipfile has decoded it
            name = (_unicode_path(member.extra, raw) or raw).decode("utf-8")
        except UnicodeError:
            is_guessed = True  # in a code page of somewhere, where a backslash may be half of a character
    if member.create_system in (_DOS, _HPFS, _NTFS, _VFAT):
        name = re.sub(r"(?<![^\x00-\x7f])\\", "/", name) if is_guessed else name.replace("\\", "/")
    return name


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """The name of Info-ZIP's extra field, if it is of this very name."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[:5] == b"\x01" + struct.pack("<I", zlib.crc32(raw)):
            return field[5:]
    return None


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return _name_in_zip(member).endswith("/") or bool(member.external_attr & _DOS_FOLDER)


def _is_link(member: zipfile.ZipInfo) -> bool:
    return member.create_system in (_UNIX, _MACOS) and stat.S_ISLNK(member.external_attr >> 16)
