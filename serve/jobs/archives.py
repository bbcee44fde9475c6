"""Lists and reads the images of a tar or a zip that GNU tar, macOS, Windows or another common tool wrote.

The names of the images are those of an unpacked archive: without `./`, separated by slashes. A link gives the same
image as in an unpacked archive. But no link leads out of the archive.
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
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from serve.errors import InputError, UnreadableError
from serve.jobs.archive_links import MAX_FOLDERS, ArchiveLinks, path_parts
from serve.jobs.image_source import MAX_NAME, ImageSource, InputImage, is_excluded, open_input_file
from serve.jobs.rooted_files import Files, RemoteFiles
from tureen.errors import ImageTooLargeError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
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
_LOCAL_HEADER_BYTES = 30  # without the name and the extra fields
_EXTRA_BYTES = 64  # of extra fields in a local header; Info-ZIP writes 28
_ENCRYPTED, _UTF8 = 0x1, 0x800  # general purpose bits
_DOS, _UNIX, _HPFS, _NTFS, _VFAT, _MACOS = 0, 3, 6, 10, 14, 19  # version made by
_DOS_FOLDER = 0x10  # an external attribute
_UNICODE_PATH = 0x7075  # an extra field


class TarSource(ImageSource):
    """The files of a tar. They should be read in order: reading an earlier file decompresses the tar from the start."""

    def __init__(self, path: PurePath, files: Files) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        self._file = open_input_file(files, path)
        self._is_plain = path.suffix.lower() == ".tar"
        self._can_pread = self._is_plain and not isinstance(files, RemoteFiles)
        self.is_sequential = not self._is_plain
        self._data = self._file if self._is_plain else _DECOMPRESSORS[path.suffix.lower()](self._file)

    def list_images(self) -> Iterator[InputImage]:
        """Yields the files in the order of the tar, then the links in the order of their targets.

        Raises InputError if the tar is damaged, or if a name or the links exceed a limit.
        """
        links = ArchiveLinks(self._path)
        for member in self._members():
            name = _normalized(member.name, self._path)
            if member.islnk() or member.issym():
                links.add(name, member.linkname, is_hard=member.islnk())
            elif member.isfile() and not is_excluded(name):
                yield InputImage(name, name, None, _location(member))
        if not links:
            return
        links.resolve()
        for member in self._members():
            if member.isfile() or member.isdir():
                links.add_target(_normalized(member.name, self._path), None if member.isdir() else _location(member))
        yield from links.images()

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            self._data.seek(0)
            with tarfile.open(fileobj=_BoundedFile(self._data), mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    yield member
                    archive.members.clear()  # tarfile keeps every member
                end = archive.offset
            self._data.seek(end)
            while block := self._data.read(1 << 20):  # tarfile treats a damaged header as the end
                if block.strip(b"\0"):
                    raise InputError(
                        f"{self._path} is damaged at byte {end:,}, or contains a second archive from that byte"
                    )
        except _DAMAGED as error:
            raise InputError(f"{self._path} cannot be read as a tar: {error}") from error

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        if not image.location:
            raise UnreadableError(_DEAD_LINK)
        try:
            if image.location.startswith("@"):
                return self._read_sparse(int(image.location[1:]), max_bytes)
            offset, size = map(int, image.location.split(":"))
            if size > max_bytes:
                raise ImageTooLargeError("bytes", max_bytes)
            if self._can_pread:
                data = os.pread(self._file.fileno(), size, offset)
            else:
                with self._lock:
                    self._data.seek(offset)
                    data = self._data.read(size)
        except _DAMAGED as error:
            raise UnreadableError("the archive cannot be read at this file") from error
        if len(data) < size:
            raise UnreadableError("the archive ends before the image does")
        return data

    def _read_sparse(self, offset: int, max_bytes: int) -> bytes:
        """Returns the bytes of the sparse file whose headers start at the byte `offset` of the tar.

        The holes of the file are zeros. Raises ImageTooLargeError if the file has more than `max_bytes`, and
        UnreadableError if the tar has changed.
        """
        with self._lock:
            self._data.seek(offset)
            bounded = _BoundedFile(self._data, max(max_bytes, MAX_HEADER))
            with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
                member = archive.next()
                if member is None or not member.isfile():
                    raise UnreadableError("the archive has changed since it was listed")
                if member.size > max_bytes:
                    raise ImageTooLargeError("bytes", max_bytes)
                data: bytes = archive.extractfile(member).read()
                return data

    def close(self) -> None:
        self._data.close()
        self._file.close()


class _BoundedFile:
    """A file that raises ReadError for a read of more than `max_bytes`.

    The limit is needed because tarfile reads headers of any declared size into memory.
    """

    def __init__(self, file: BinaryIO, max_bytes: int = MAX_HEADER) -> None:
        self._file, self._most, self.seek, self.tell = file, max_bytes, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise tarfile.ReadError(f"a header of more than {self._most:,} bytes")
        return self._file.read(size)


class ZipSource(ImageSource):
    """The files of a zip, in the order of the zip's directory.

    An encrypted file is listed, and `read` raises UnreadableError for it.
    """

    def __init__(self, path: PurePath, files: Files) -> None:
        super().__init__()
        self._path = path
        self._file = open_input_file(files, path)
        self._can_pread = not isinstance(files, RemoteFiles)
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._members = self._archive.infolist()
            self._file.seek(0)
            begins_with_member = self._file.read(len(_LOCAL_HEADER)) == _LOCAL_HEADER
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error) as error:
            self._file.close()
            raise InputError(f"{path} is not a zip, or is damaged or truncated") from error
        try:
            # A truncated zip may end with the directory of another zip that is stored in it.
            if begins_with_member and all(member.header_offset for member in self._members):
                raise InputError(f"{path} is truncated or damaged: its directory does not name its first file")
            self._check_passwords()
        except InputError:
            self.close()
            raise

    def _check_passwords(self) -> None:
        """Raises InputError if every file needs a password."""
        images = [member for member in self._members if not _is_folder(member)]
        if images and all(member.flag_bits & _ENCRYPTED for member in images):
            raise InputError(f"{self._path} is encrypted: unpack it with its password and give the folder")

    def list_images(self) -> Iterator[InputImage]:
        """Yields each file that is not excluded, in the order of the zip, then the images of `ArchiveLinks.images`.

        Raises InputError if a name or the links exceed a limit.
        """
        links = ArchiveLinks(self._path)
        for n, member in enumerate(self._members):
            name = _normalized(_name_in_zip(member), self._path)
            if _is_link(member):
                links.add(name, self._target(member))
            elif not _is_folder(member) and not is_excluded(name):
                yield InputImage(name, name, None, str(n))
        if not links:
            return
        links.resolve()
        for n, member in enumerate(self._members):
            if not _is_link(member):
                links.add_target(_normalized(_name_in_zip(member), self._path), None if _is_folder(member) else str(n))
        yield from links.images()

    def _target(self, member: zipfile.ZipInfo) -> str:
        """Returns the target path of a link; "" if the path cannot be read, or has more than MAX_NAME bytes."""
        try:
            return self._read(member, MAX_NAME).decode("utf-8", "surrogateescape")
        except (ImageTooLargeError, UnreadableError):
            return ""

    def read(self, image: InputImage, max_bytes: int) -> bytes:
        if not image.location:
            raise UnreadableError(_DEAD_LINK)
        return self._read(self._members[int(image.location)], max_bytes)

    def _read(self, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
        if member.flag_bits & _ENCRYPTED:
            raise UnreadableError("it is encrypted in the archive")
        if self._can_pread and (content := self._read_intact(member, max_bytes)) is not None:
            return content
        try:
            with self._archive.open(member) as file:
                data = file.read(max_bytes + 1)  # the declared size may be wrong
        except NotImplementedError as error:
            raise UnreadableError("its compression method is not supported: use deflate") from error
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
            raise UnreadableError("the archive cannot be read at this file") from error
        except Exception as error:  # exceptions of zlib, lzma and bz2 have no common base class
            raise UnreadableError("the archive is damaged at this file") from error
        if len(data) > max_bytes:
            raise ImageTooLargeError("bytes", max_bytes)
        return data

    def _read_intact(self, member: zipfile.ZipInfo, max_bytes: int) -> bytes | None:
        """Returns the bytes of a member that is stored or deflated, with one read of the disk.

        Returns None if the member has another compression or more than `max_bytes`, or if anything in it is wrong.
        `zipfile` reads the member then, and finds the error. For a small image `zipfile` takes three times as long, and
        its lock makes the threads wait for each other.
        """
        is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
        if not (is_deflated or member.compress_type == zipfile.ZIP_STORED):
            return None
        if member.file_size > max_bytes or member.compress_size > max_bytes or member.flag_bits & _ENCRYPTED:
            return None
        size = _LOCAL_HEADER_BYTES + len(member.filename.encode()) + _EXTRA_BYTES + member.compress_size
        try:
            data = os.pread(self._file.fileno(), size, member.header_offset)
            signature, name_size, extra_size = struct.unpack_from("<4s22xHH", data)
            begin = _LOCAL_HEADER_BYTES + name_size
            name = data[_LOCAL_HEADER_BYTES:begin].decode("utf-8" if member.flag_bits & _UTF8 else "cp437")
            content = data[begin + extra_size : begin + extra_size + member.compress_size]
            if is_deflated:
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                content = inflate.decompress(content, member.file_size + 1)
                if not inflate.eof:
                    return None
        except (OSError, struct.error, UnicodeError, zlib.error):
            return None
        is_intact = (
            signature == _LOCAL_HEADER
            and name == member.orig_filename
            and len(content) == member.file_size
            and zlib.crc32(content) == member.CRC
        )
        return content if is_intact else None

    def close(self) -> None:
        self._archive.close()
        self._file.close()


def _normalized(raw: str, archive: PurePath) -> str:
    """Returns the name of a member of an archive without `.` and empty components.

    archive: the path for the message. Raises InputError if the name has more than MAX_NAME characters, or more than
    MAX_FOLDERS components.
    """
    if len(raw) > MAX_NAME:
        raise InputError(f"{archive}: a name has more than {MAX_NAME:,} characters")
    parts = path_parts(raw)
    if len(parts) > MAX_FOLDERS:
        raise InputError(f"{archive}: a name lies below more than {MAX_FOLDERS} folders")
    return "/".join(parts)


def _location(member: tarfile.TarInfo) -> str:
    """Returns the `InputImage.location` of a file in a tar.

    It is `OFFSET:SIZE` of the file's content, in bytes. For a sparse file it is `@` and the offset of its headers.
    """
    return f"@{member.offset}" if member.issparse() else f"{member.offset_data}:{member.size}"


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """Returns the name of a member of a zip, with slashes in place of the backslashes that Windows tools write.

    Decodes a name without the UTF-8 flag as UTF-8 if this is possible, because Info-ZIP and macOS do not set the flag.
    If the member has the extra field of Info-ZIP with a Unicode name, uses that name.
    """
    name, is_guessed = member.filename, False
    if not member.flag_bits & _UTF8 and not name.isascii():
        try:
            raw = name.encode("cp437")  # the code page with which zipfile decoded the name
            name = (_unicode_path(member.extra, raw) or raw).decode("utf-8")
        except UnicodeError:
            is_guessed = True  # an unknown code page, where a backslash may be half of a character
    if member.create_system in (_DOS, _HPFS, _NTFS, _VFAT):
        name = re.sub(r"(?<![^\x00-\x7f])\\", "/", name) if is_guessed else name.replace("\\", "/")
    return name


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """Returns the UTF-8 name in the extra field of Info-ZIP; None if there is no such field.

    raw: the name in the header. A field whose checksum does not match `raw` is ignored.
    """
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
