"""The kinds of input of a job: a folder, a glob, an archive or a manifest, on this machine or at an fsspec URL.

A manifest is a table with a row for each image. Each source lists the images one by one, in the same order each time,
and reads any of them later.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from serve.errors import InputError, UnreadableError
from serve.jobs.archives import TAR_SUFFIXES, TarSource, ZipSource
from serve.jobs.image_source import MAX_NAME, ImageSource, InputImage, is_excluded, is_system_file, open_input_file
from serve.jobs.parquet_images import IMAGE_COLUMN, ParquetImages
from serve.jobs.rooted_files import Files, FolderEntry, RemoteFiles, RootedFiles
from tureen.errors import ImageTooLargeError, InvalidBetaError, InvalidStrengthError
from tureen.tokens import parse_beta, parse_strength

T = TypeVar("T")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
MAX_LINE = 1 << 20  # bytes of one line of a manifest
ALL_FILES = Files()
_HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LOCAL_SCHEME = re.compile(r"(file|local)://", re.IGNORECASE)
_NOT_UTF8 = "{path} is not in UTF-8: save it in UTF-8"


def open_source(input_path: str, files: Files = ALL_FILES) -> ImageSource:
    """Returns the source of the images at `input_path`: a folder, a glob, an archive, a manifest or an fsspec URL.

    files: opens the files. A RootedFiles opens only files in the operator's directories, and then the input must be
    neither a glob nor a URL. Raises InputError if the input does not exist, is of another kind, or cannot be opened.
    Raises OutsideRootsError if the input is outside the directories of RootedFiles.
    """
    if isinstance(files, RootedFiles):
        files.check_input(input_path)
    else:
        input_path = _LOCAL_SCHEME.sub("", input_path)
        if _HAS_SCHEME.match(input_path):
            return _open_url(input_path)
        if not input_path.strip():
            raise InputError("INPUT is empty: give a folder, a glob, an archive, a manifest or a URL")
    path = Path(input_path)
    is_folder = files.is_folder(path)
    if is_folder:
        return FolderSource(path, files)
    if is_folder is False:
        if input_path.lower().endswith(TAR_SUFFIXES):
            return TarSource(path, files)
        if path.suffix.lower() == ".zip":
            return ZipSource(path, files)
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            return ManifestSource(path, files)
        kinds = ", ".join((*TAR_SUFFIXES, ".zip", *MANIFEST_SUFFIXES))
        raise InputError(f"{input_path} is one file: give a folder, or a file of {kinds}")
    if glob.has_magic(input_path) and not isinstance(files, RootedFiles):
        return GlobSource(input_path)
    raise InputError(f"{input_path} does not exist")


class FolderSource(ImageSource):
    """All files below a folder, except hidden files and the system files of macOS and Windows."""

    def __init__(self, root: Path, files: Files) -> None:
        super().__init__()
        self._root, self._files = root, files

    def list_images(self) -> Iterator[InputImage]:
        for name, entry in _walk(self._files, self._root):
            if not entry.is_folder:
                yield InputImage(name, name, None, name)
            elif entry.is_link:
                self.linked_folders.append(str(self._root / name))

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        return _read_file(self._files, self._root / image.location, max_bytes)


class GlobSource(ImageSource):
    """The files that a pattern matches; `**` matches any number of folders.

    Matches as Python's glob does, except that `**` does not follow a link to a folder that contains the link.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._folder = "/" if pattern.startswith("/") else ""
        self._parts = [part for part in pattern.split("/") if part]

    def list_images(self) -> Iterator[InputImage]:
        for name in sorted(set(self._matches(self._folder, self._parts))):
            if not is_system_file(name):
                yield InputImage(name, name, None, name)

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        return _read_file(ALL_FILES, Path(image.location), max_bytes)

    def _matches(self, folder: str, parts: Sequence[str]) -> Iterator[str]:
        """Yields the paths of the files below `folder` that match the components `parts` of a pattern."""
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
            for name, entry in _walk(ALL_FILES, Path(folder)):
                path = os.path.join(folder, name)
                if entry.is_folder:
                    yield from self._matches(path, rest)
                elif not rest:
                    yield path
            return
        for entry in ALL_FILES.list_folder(Path(folder)).entries:
            if fnmatch.fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                path = os.path.join(folder, entry.name)
                if entry.is_folder:
                    yield from self._matches(path, rest)
                elif not rest:
                    yield path


class ManifestSource(ImageSource):
    """The images in a manifest, a table with the column `path` and the optional columns `id`, and `beta` or `strength`.

    A path is a URL, an absolute path, or relative to the folder of the manifest. If `files` is a RootedFiles, which
    opens only files in the operator's directories, a path must not be a URL. A Parquet file with the column `image`
    holds the images itself. Then a path is only a name, and the column `path` is optional.
    """

    def __init__(self, path: PurePath, files: Files) -> None:
        """Raises InputError if a Parquet file cannot be read, and ModuleNotFoundError without pyarrow."""
        super().__init__()
        self._path, self._files = path, files
        self._images = ParquetImages(path, files) if path.suffix.lower() == ".parquet" else None
        if self._images is not None and not self._images.exist:
            self._images.close()
            self._images = None
        self.is_sequential = self._images is not None

    def list_images(self) -> Iterator[InputImage]:
        rows = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[self._path.suffix.lower()]
        scales: set[str] = set()  # columns of all rows so far; each row of JSONL names its own
        with open_input_file(self._files, self._path) as file:
            for n, row in enumerate(rows(file, self._path), start=1):
                row_name = f"{self._path}, row {n}"
                scales |= row.keys() & {"beta", "strength"}
                if len(scales) > 1:
                    raise InputError(f"{self._path} has the columns beta and strength: remove one")
                path = row.get("path")
                if self._images is not None and path in (None, ""):
                    path = f"row {n}"
                if not isinstance(path, str) or not path or "\0" in path:
                    raise InputError(f"{row_name}: the column path holds no path")
                identity = row.get("id")
                if max(len(path), len(str(identity))) > MAX_NAME:
                    raise InputError(f"{row_name}: a path or id has more than {MAX_NAME:,} characters")
                image_id = path if identity in (None, "") else str(identity)
                beta = _parse_number(parse_beta, InvalidBetaError, row.get("beta"), row_name)
                strength = _parse_number(parse_strength, InvalidStrengthError, row.get("strength"), row_name)
                location = path if self._images is None else str(n - 1)
                yield InputImage(image_id, path, beta, location, strength)

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        if self._images is not None:
            return self._images.read(int(image.location), max_bytes)
        if isinstance(self._files, RootedFiles):
            return _read_file(self._files, self._path.parent / image.location, max_bytes)
        if _LOCAL_SCHEME.match(image.location):
            return _read_file(ALL_FILES, Path(_LOCAL_SCHEME.sub("", image.location)), max_bytes)
        if _HAS_SCHEME.match(image.location):
            try:
                files, path = _open_store(image.location)
            except InputError as error:
                raise UnreadableError("its store cannot be opened") from error
            return _read_file(files, path, max_bytes)
        return _read_file(self._files, self._path.parent / image.location, max_bytes)

    def close(self) -> None:
        if self._images is not None:
            self._images.close()


class RemoteSource(ImageSource):
    """The files of a folder or glob at an fsspec URL, such as s3://bucket/images. Skips hidden and system files."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._files, self._root = _open_filesystem(url)

    def list_images(self) -> Iterator[InputImage]:
        try:
            is_glob = glob.has_magic(self._root)
            found = iter(sorted(self._files.glob(self._root))) if is_glob else self._list_files(self._root)
            for path in found:
                name = path if is_glob else path.removeprefix(self._root).lstrip("/")
                if not is_excluded(PurePosixPath(path).name if is_glob else name):
                    yield InputImage(name, name, None, path)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._root} cannot be listed: {error}") from error

    def _list_files(self, folder: str) -> Iterator[str]:
        for entry in sorted(self._files.ls(folder, detail=True), key=lambda entry: str(entry["name"])):
            if entry["type"] == "directory":
                yield from self._list_files(entry["name"])
            elif entry["name"].rstrip("/") != folder.rstrip("/"):  # some stores list an empty object for each folder
                yield entry["name"]

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        return _read_file(RemoteFiles(self._files), PurePosixPath(image.location), max_bytes)


def _read_file(files: Files, path: PurePath, max_bytes: int) -> bytes:
    """Returns the bytes of a regular file.

    Raises ImageTooLargeError if it has more than `max_bytes`, and UnreadableError if it cannot be read.
    """
    data = files.read(path, max_bytes)
    if len(data) > max_bytes:
        raise ImageTooLargeError("bytes", max_bytes)
    return data


def _walk(files: Files, root: Path) -> Iterator[tuple[str, FolderEntry]]:
    """Yields each file and folder below `root`, as its path relative to `root` and its entry.

    Yields a folder before its content. Skips hidden files and system files. Follows a link to a folder, but not to a
    folder that contains the link.
    """
    listing = files.list_folder(root)
    open_folders = [("", listing.identity, iter(listing.entries))]
    while open_folders:
        folder, _, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif not is_excluded(entry.name):
            name = f"{folder}{entry.name}"
            if entry.is_folder:
                listing = files.list_folder(root / name)
                if any(listing.identity == above for _, above, _ in open_folders):
                    continue
                open_folders.append((f"{name}/", listing.identity, iter(listing.entries)))
            yield name, entry


def _parse_number(
    parse: Callable[[str | float], T],
    invalid: type[InvalidBetaError | InvalidStrengthError],
    value: object,
    row_name: str,
) -> T | None:
    """Returns the β or the strength in a cell; None if the cell is empty.

    Raises InputError, with the name of the row, if `parse` raises `invalid` or if the value is no number or text.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise invalid(value)
        return parse(value)
    except invalid as error:
        raise InputError(f"{row_name}: {error}") from error


def _read_csv(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
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


def _read_jsonl(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
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
            raise InputError(f"{path}, line {n}, is not JSON") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {n}, is not a JSON object")
        yield row


def _read_parquet(file: BinaryIO, path: PurePath) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if "path" not in names and IMAGE_COLUMN not in names:
                raise InputError(f"{path} has no column path, and no column {IMAGE_COLUMN}")
            columns = [name for name in ("path", "id", "beta", "strength") if name in names]
            if not columns:
                yield from ({} for _ in range(table.metadata.num_rows))
                return
            for batch in table.iter_batches(batch_size=8192, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _open_filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise InputError(f"{url} needs fsspec: pip install 'tureen[batch]'") from None
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}") from error
    return files, path


def _open_url(url: str) -> ImageSource:
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    files, path = _open_store(url)
    if url.lower().endswith(TAR_SUFFIXES):
        return TarSource(path, files)
    if suffix == ".zip":
        return ZipSource(path, files)
    if suffix in MANIFEST_SUFFIXES:
        return ManifestSource(path, files)
    return RemoteSource(url)


def _open_store(url: str) -> tuple[RemoteFiles, PurePosixPath]:
    filesystem, path = _open_filesystem(url)  # fsspec caches one per store
    return RemoteFiles(filesystem), PurePosixPath(path)
