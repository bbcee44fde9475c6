"""Where a job's images come from: a folder, a glob, an archive, a manifest, here or at an fsspec URL.

Each source lists its images in an order that is the same each time, one by one, and reads any of them later.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from serve.jobs.errors import InputError, UnreadableError
from serve.jobs.files import Files, Rooted, StoredFiles
from tureen.errors import ImageTooLargeError, InvalidBetaError
from tureen.tokens import parse_beta

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
MAX_LINE = 1 << 20  # bytes of one line of a manifest
MAX_NAME = 4096  # characters of a path or an id
_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
ANY = Files()
_HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One image of the input. where: what its source needs to find it again."""

    id: str
    path: str
    beta: float | None  # the manifest's own for it
    where: str


class Source(ABC):
    """Lists images, and reads them from any thread; closed by whoever opened it."""

    is_sequential = False  # reading in another order than listed is very slow

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Every image, in the same order each time; raises InputError."""

    @abstractmethod
    def read(self, item: Item, most: int) -> bytes:
        """The bytes of an image; raises ImageTooLargeError beyond `most`, or UnreadableError."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Read no more."""


def open_source(given: str, files: Files = ANY) -> Source:
    """The source that INPUT names; raises InputError. Below roots there are neither globs nor URLs."""
    if isinstance(files, Rooted):
        files.check_input(given)
    elif _HAS_SCHEME.match(given):
        return _open_remote(given)
    path = Path(given)
    is_folder = files.is_folder(path)
    if is_folder:
        return Folder(path, files)
    if is_folder is False:
        if given.lower().endswith(TAR_SUFFIXES):
            return Tar(path, files)
        if path.suffix.lower() == ".zip":
            return Zip(path, files)
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            return Manifest(path, files)
        kinds = ", ".join((*TAR_SUFFIXES, ".zip", *MANIFEST_SUFFIXES))
        raise InputError(f"{given} is one file: give a folder, or a file of {kinds}")
    if glob.has_magic(given) and not isinstance(files, Rooted):
        return Glob(given)
    raise InputError(f"there is no {given}")


class Folder(Source):
    """All files under a folder, but for hidden ones; links to folders are not followed."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root, self._files = root, files

    def items(self) -> Iterator[Item]:
        for name in self._names():
            yield Item(name, name, None, name)

    def read(self, item: Item, most: int) -> bytes:
        return _read(self._files, self._root / item.where, most)

    def _names(self) -> Iterator[str]:
        under = [("", iter(self._files.scan(self._root)))]
        while under:
            folder, entries = under[-1]
            name, is_folder = next(entries, ("", False))
            if not name:
                under.pop()
            elif is_folder and not _is_hidden(name):
                below = f"{folder}{name}/"
                under.append((below, iter(self._files.scan(self._root / below))))
            elif not _is_hidden(name):
                yield f"{folder}{name}"


class Glob(Source):
    """The files that a pattern matches; ** goes down any number of folders."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def items(self) -> Iterator[Item]:
        for name in sorted(glob.iglob(self._pattern, recursive=True)):
            if not os.path.isdir(name):
                yield Item(name, name, None, name)

    def read(self, item: Item, most: int) -> bytes:
        return _read(ANY, Path(item.where), most)


class Tar(Source):
    """The files of a tar; a compressed one is read from front to back, again from the front where need be."""

    def __init__(self, path: PurePath, files: Files) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = _opened(files, path)
        self._is_plain = path.suffix.lower() == ".tar"
        self._can_pread = self._is_plain and not isinstance(files, StoredFiles)
        self.is_sequential = not self._is_plain
        self._data = self._file if self._is_plain else _DECOMPRESSORS[path.suffix.lower()](self._file)

    def items(self) -> Iterator[Item]:
        try:
            self._data.seek(0)
            with tarfile.open(fileobj=self._data, mode="r:") as archive:
                for member in archive:
                    if (member.isfile() or member.islnk() or member.issym()) and not _is_hidden(member.name):
                        is_whole = member.isfile() and not member.issparse()
                        where = f"{member.offset_data}:{member.size}" if is_whole else ""
                        yield Item(member.name, member.name, None, where)
                    archive.members.clear()  # type: ignore[attr-defined]  # which grows with every one
                end = archive.offset
            self._data.seek(end)
            while block := self._data.read(1 << 20):  # tarfile takes a damaged header for the end
                if block.strip(b"\0"):
                    raise InputError(f"{self._path} is damaged at byte {end:,}, or another archive begins there")
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{self._path} cannot be read as a tar: {error}") from error

    def read(self, item: Item, most: int) -> bytes:
        if not item.where:
            raise UnreadableError("it is a link in the archive, or a sparse file")
        offset, size = map(int, item.where.split(":"))
        if size > most:
            raise ImageTooLargeError("bytes", most)
        try:
            if self._can_pread:
                data = os.pread(self._file.fileno(), size, offset)
            else:
                with self._lock:
                    self._data.seek(offset)
                    data = self._data.read(size)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UnreadableError("the archive cannot be read there") from error
        if len(data) < size:
            raise UnreadableError("the archive ends before the image does")
        return data

    def close(self) -> None:
        self._data.close()
        self._file.close()


class Zip(Source):
    """The files of a zip."""

    def __init__(self, path: PurePath, files: Files) -> None:
        self._file = _opened(files, path)
        try:
            self._archive = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError) as error:
            self._file.close()
            raise InputError(f"{path} cannot be read as a zip: {error}") from error
        self._members = self._archive.infolist()

    def items(self) -> Iterator[Item]:
        for n, member in enumerate(self._members):
            if not member.is_dir() and not _is_hidden(member.filename):
                yield Item(member.filename, member.filename, None, str(n))

    def read(self, item: Item, most: int) -> bytes:
        member = self._members[int(item.where)]
        try:
            with self._archive.open(member) as file:
                data = file.read(most + 1)  # whatever its head says of the size
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise UnreadableError("the archive cannot be read there") from error
        except Exception as error:  # zlib's, lzma's and bz2's own, which have no common base
            raise UnreadableError("the archive is damaged there") from error
        if len(data) > most:
            raise ImageTooLargeError("bytes", most)
        return data

    def close(self) -> None:
        self._archive.close()
        self._file.close()


class Manifest(Source):
    """A table with a column `path`, from its own folder or a URL, and perhaps `id` and `beta`."""

    def __init__(self, path: PurePath, files: Files) -> None:
        self._path, self._files = path, files

    def items(self) -> Iterator[Item]:
        rows = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[self._path.suffix.lower()]
        with _opened(self._files, self._path) as file:
            for n, row in enumerate(rows(file, self._path), start=1):
                place = f"{self._path}, row {n}"
                path = row.get("path")
                if not isinstance(path, str) or not path or "\0" in path:
                    raise InputError(f"{place}: there is no path in the column path")
                identity = row.get("id")
                if max(len(path), len(str(identity))) > MAX_NAME:
                    raise InputError(f"{place}: a path or id has more than {MAX_NAME:,} characters")
                yield Item(path if identity in (None, "") else str(identity), path, _beta(row.get("beta"), place), path)

    def read(self, item: Item, most: int) -> bytes:
        if _HAS_SCHEME.match(item.where) and not isinstance(self._files, Rooted):
            try:
                files, path = _store_of(item.where)
            except InputError as error:
                raise UnreadableError("it cannot be read from there") from error
            return _read(files, path, most)
        return _read(self._files, self._path.parent / item.where, most)


class Remote(Source):
    """A folder or glob at an fsspec URL."""

    def __init__(self, url: str) -> None:
        self._files, self._root = _filesystem(url)

    def items(self) -> Iterator[Item]:
        try:
            is_glob = glob.has_magic(self._root)
            found = iter(sorted(self._files.glob(self._root))) if is_glob else self._files_under(self._root)
            for path in found:
                name = path if is_glob else path.removeprefix(self._root).lstrip("/")
                if not _is_hidden(PurePosixPath(path).name if is_glob else name):
                    yield Item(name, name, None, path)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._root} cannot be listed: {error}") from error

    def _files_under(self, folder: str) -> Iterator[str]:
        for entry in sorted(self._files.ls(folder, detail=True), key=lambda entry: str(entry["name"])):
            if entry["type"] == "directory":
                yield from self._files_under(entry["name"])
            elif entry["name"].rstrip("/") != folder.rstrip("/"):  # some stores keep an empty object for a folder
                yield entry["name"]

    def read(self, item: Item, most: int) -> bytes:
        return _read(StoredFiles(self._files), PurePosixPath(item.where), most)


def _read(files: Files, path: PurePath, most: int) -> bytes:
    """The bytes of a regular file; raises ImageTooLargeError beyond `most`, or UnreadableError."""
    with files.open(path) as file:
        try:
            data = file.read(most + 1)
        except Exception as error:  # each store has its own
            raise UnreadableError(getattr(error, "strerror", None) or "it cannot be read") from error
    if len(data) > most:
        raise ImageTooLargeError("bytes", most)
    return data


def _opened(files: Files, path: PurePath) -> BinaryIO:
    """An archive or a manifest; raises InputError."""
    try:
        return files.open(path)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from error


def _is_hidden(name: str) -> bool:
    """Whether a path, from where the input begins, is of a hidden file or below a hidden folder, or a job's end."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part != ".." for part in parts) or parts[-1:] == ("_SUCCESS",)


def _beta(value: object, place: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidBetaError(value)
        return parse_beta(value)
    except InvalidBetaError as error:
        raise InputError(f"{place}: {error}") from error


def _csv_rows(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        rows = csv.DictReader(text, strict=True)
        if rows.fieldnames is None or "path" not in rows.fieldnames:
            raise InputError(f"{path} has no column path: its first line names the columns")
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    finally:
        text.detach()  # whoever opened the file closes it


def _json_rows(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
    n = 0
    while line := file.readline(MAX_LINE):
        n += 1
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {n}, is no JSON") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {n}, is no JSON object")
        yield row


def _parquet_rows(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            if "path" not in table.schema_arrow.names:
                raise InputError(f"{path} has no column path")
            columns = [name for name in ("path", "id", "beta") if name in table.schema_arrow.names]
            for batch in table.iter_batches(batch_size=8192, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise InputError(f"{url} needs fsspec: pip install 'tureen[batch]'") from None
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}") from error
    return files, path


def _open_remote(url: str) -> Source:
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    files, path = _store_of(url)
    if url.lower().endswith(TAR_SUFFIXES):
        return Tar(path, files)
    if suffix == ".zip":
        return Zip(path, files)
    if suffix in MANIFEST_SUFFIXES:
        return Manifest(path, files)
    return Remote(url)


def _store_of(url: str) -> tuple[StoredFiles, PurePosixPath]:
    filesystem, path = _filesystem(url)  # fsspec keeps one for each store
    return StoredFiles(filesystem), PurePosixPath(path)
