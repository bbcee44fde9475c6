"""Where a job's images come from: a folder, a glob, an archive, a manifest, here or at an fsspec URL.

Each source lists its images in an order that is the same each time, one by one, and reads any of them later.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import glob
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from serve.errors import InputError, UnreadableError
from serve.jobs.archives import TAR_SUFFIXES, Tar, Zip
from serve.jobs.image_source import MAX_NAME, Item, Source, is_left_out, is_made_by_system, opened
from serve.jobs.rooted_files import Entry, Files, Rooted, StoredFiles
from tureen.errors import ImageTooLargeError, InvalidBetaError
from tureen.tokens import parse_beta

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
MAX_LINE = 1 << 20  # bytes of one line of a manifest
ANY = Files()
_HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_OF_THIS_MACHINE = re.compile(r"(file|local)://", re.IGNORECASE)
_NOT_UTF8 = "{path} is not in UTF-8: save it anew in that encoding"


def open_source(given: str, files: Files = ANY) -> Source:
    """The source that INPUT names; raises InputError. Below roots there are neither globs nor URLs."""
    if isinstance(files, Rooted):
        files.check_input(given)
    else:
        given = _OF_THIS_MACHINE.sub("", given)
        if _HAS_SCHEME.match(given):
            return _open_remote(given)
        if not given.strip():
            raise InputError("INPUT is empty: give a folder, a glob, an archive, a manifest or a URL")
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
    """All files under a folder, but for hidden ones and those of macOS and Windows themselves."""

    def __init__(self, root: Path, files: Files) -> None:
        super().__init__()
        self._root, self._files = root, files

    def items(self) -> Iterator[Item]:
        for name, entry in _walk(self._files, self._root):
            if not entry.is_folder:
                yield Item(name, name, None, name)
            elif entry.is_link:
                self.linked_folders.append(str(self._root / name))

    def read(self, item: Item, most: int) -> bytes:
        return _read(self._files, self._root / item.where, most)


class Glob(Source):
    """The files that a pattern matches; ** goes down any number of folders.

    As Python's glob, which follows a link that leads upwards until the system refuses.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._folder = "/" if pattern.startswith("/") else ""
        self._parts = [part for part in pattern.split("/") if part]

    def items(self) -> Iterator[Item]:
        for name in sorted(set(self._matches(self._folder, self._parts))):
            if not is_made_by_system(name):
                yield Item(name, name, None, name)

    def read(self, item: Item, most: int) -> bytes:
        return _read(ANY, Path(item.where), most)

    def _matches(self, folder: str, parts: Sequence[str]) -> Iterator[str]:
        """The files below a folder whose paths from there match."""
        if not parts:
            return
        part, rest = parts[0], parts[1:]
        if not glob.has_magic(part):
            path = os.path.join(folder, part)
            if os.path.isdir(path):
                yield from self._matches(path, rest)
            elif not rest and os.path.lexists(path):
                yield path
            return
        if part == "**":
            yield from self._matches(folder, rest)
            for name, entry in _walk(ANY, Path(folder)):
                path = os.path.join(folder, name)
                if entry.is_folder:
                    yield from self._matches(path, rest)
                elif not rest:
                    yield path
            return
        for entry in ANY.scan(Path(folder)).entries:
            if fnmatch.fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                path = os.path.join(folder, entry.name)
                if entry.is_folder:
                    yield from self._matches(path, rest)
                elif not rest:
                    yield path


class Manifest(Source):
    """A table with a column `path`, from its own folder or a URL, and perhaps `id` and `beta`."""

    def __init__(self, path: PurePath, files: Files) -> None:
        super().__init__()
        self._path, self._files = path, files

    def items(self) -> Iterator[Item]:
        rows = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[self._path.suffix.lower()]
        with opened(self._files, self._path) as file:
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
        if isinstance(self._files, Rooted):
            return _read(self._files, self._path.parent / item.where, most)
        if _OF_THIS_MACHINE.match(item.where):
            return _read(ANY, Path(_OF_THIS_MACHINE.sub("", item.where)), most)
        if _HAS_SCHEME.match(item.where):
            try:
                files, path = _store_of(item.where)
            except InputError as error:
                raise UnreadableError("it cannot be read from there") from error
            return _read(files, path, most)
        return _read(self._files, self._path.parent / item.where, most)


class Remote(Source):
    """A folder or glob at an fsspec URL."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._files, self._root = _filesystem(url)

    def items(self) -> Iterator[Item]:
        try:
            is_glob = glob.has_magic(self._root)
            found = iter(sorted(self._files.glob(self._root))) if is_glob else self._files_under(self._root)
            for path in found:
                name = path if is_glob else path.removeprefix(self._root).lstrip("/")
                if not is_left_out(PurePosixPath(path).name if is_glob else name):
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


def _walk(files: Files, root: Path) -> Iterator[tuple[str, Entry]]:
    """What is under a folder, by path from there, a folder before its content; not what is to be left out.

    Links to folders are followed, but for one to a folder that it is in, whose files come in any case.
    """
    listing = files.scan(root)
    under = [("", listing.identity, iter(listing.entries))]
    while under:
        folder, _, entries = under[-1]
        entry = next(entries, None)
        if entry is None:
            under.pop()
        elif not is_left_out(entry.name):
            name = f"{folder}{entry.name}"
            if entry.is_folder:
                listing = files.scan(root / name)
                if any(listing.identity == above for _, above, _ in under):
                    continue
                under.append((f"{name}/", listing.identity, iter(listing.entries)))
            yield name, entry


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
    except UnicodeDecodeError as error:
        raise InputError(_NOT_UTF8.format(path=path)) from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    finally:
        text.detach()  # the caller closes the file


def _json_rows(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
    n = 0
    while line := file.readline(MAX_LINE):
        n += 1
        if n == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(_NOT_UTF8.format(path=path)) from error
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
