"""Downloads bundles into the cache directory, and finds them there. Verifies each file by its SHA-256.

bundles/SOURCE/               one directory for each source, which is an address without its revision
    lock                      held by the process that downloads
    REVISION.json             the copy that an address had when it was last resolved
    MANIFEST-SHA256/          a complete copy; it is renamed to this name when its last file is verified
    MANIFEST-SHA256.part/     an incomplete copy, with which the next download continues
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from tureen.atomic_file import sync_directory, sync_file, write_atomically
from tureen.bundle.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    check_listed_names,
    parse_manifest,
    read_manifest,
    size_limit,
)
from tureen.bundle.files import file_size
from tureen.bundle.manifest import ENGINES_DIRECTORY, FileRecord, Manifest
from tureen.errors import BundleError, BundleTransferError, TureenError, UnreachableHostError
from tureen.remote.address import BundleAddress
from tureen.remote.store import Store, open_store

BUNDLES: Final = "bundles"
_FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger("tureen.remote")


class ResolvedAddress(BaseModel):
    """The copy that an address had when it was last resolved."""

    model_config = ConfigDict(frozen=True)

    address: str
    commit: str | None  # of the hub; None: the store has no commits
    manifest_sha256: str
    resolved_s: float  # time.time


def download_bundle(address: BundleAddress, cache: Path) -> Path:
    """Returns the directory of a copy of the bundle in `cache`. Downloads what the cache lacks.

    Each file is verified before the copy gets its name. An interrupted download continues where it stopped. If another
    process downloads from the same source, waits for it. If the host cannot be reached, returns the last copy of this
    address and logs its age. An address with a commit that is in the cache needs no request.
    Raises BundleError if the manifest is invalid. Raises BundleTransferError if a file cannot be downloaded, differs
    from the manifest or does not fit on the disk, and UnreachableHostError if the host is absent and the cache has no
    copy. Raises BundleAddressError if a package is not installed.
    """
    source = cache / BUNDLES / address.cache_name
    record = source / f"{hashlib.sha256((address.revision or '').encode()).hexdigest()[:16]}.json"
    if address.is_pinned and (known := _read_record(record)) and (copy := _complete_copy(source, known)):
        return copy
    try:
        source.mkdir(parents=True, exist_ok=True)
        with _locked(source / "lock", address):
            return _update(address, source, record)
    except OSError as error:
        raise _disk_error(address, cache, error) from error


def _update(address: BundleAddress, source: Path, record: Path) -> Path:
    """Resolves the address, and returns its copy. If the host cannot be reached, returns the last copy."""
    store = open_store(address)
    try:
        commit = store.resolve()
        data = store.read(MANIFEST, MAX_MANIFEST_BYTES)
        resolved = ResolvedAddress(
            address=str(address),
            commit=commit,
            manifest_sha256=hashlib.sha256(data).hexdigest(),
            resolved_s=time.time(),
        )
        copy = _complete_copy(source, resolved) or _download(store, source, data)
    except UnreachableHostError as error:
        last = _read_record(record)
        earlier = None if last is None else _complete_copy(source, last)
        if last is None or earlier is None:
            raise UnreachableHostError(f"{error}; the cache {source.parent} has no copy") from error
        logger.warning("%s; using the cached copy of %s ago", error, _age(time.time() - last.resolved_s))
        return earlier
    write_atomically(record, resolved.model_dump_json(indent=2).encode())
    return copy


def _read_record(record: Path) -> ResolvedAddress | None:
    try:
        return ResolvedAddress.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):
        return None


def _complete_copy(source: Path, resolved: ResolvedAddress) -> Path | None:
    """Returns the copy with this manifest; None if there is none. Checks the names and sizes of its files.

    `load_bundle` verifies the SHA-256 of each file. A copy that lacks a file becomes an incomplete copy.
    """
    copy = source / resolved.manifest_sha256
    if not copy.is_dir():
        return None
    try:
        if all(file_size(copy, name) == record.size for name, record in read_manifest(copy).files.items()):
            return copy
    except BundleError:
        pass
    partial = _partial(copy)
    shutil.rmtree(partial, ignore_errors=True)
    copy.rename(partial)
    return None


def _partial(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.part")


def _download(store: Store, source: Path, data: bytes) -> Path:
    """Downloads the files that the manifest in `data` lists, and returns the complete copy."""
    manifest = _checked_manifest(store.address, data)
    copy = source / hashlib.sha256(data).hexdigest()
    partial = _partial(copy)
    partial.mkdir(exist_ok=True)
    if any(name.startswith(f"{ENGINES_DIRECTORY}/") for name in manifest.files):
        (partial / ENGINES_DIRECTORY).mkdir(exist_ok=True)
    _check_free_space(store.address, partial, manifest)
    progress = _Progress(store.address, manifest)
    for name, record in manifest.files.items():
        _download_file(store, partial, name, record, progress)
    progress.end()
    write_atomically(partial / MANIFEST, data)
    sync_directory(partial)
    partial.rename(copy)
    sync_directory(source)
    return copy


def _checked_manifest(address: BundleAddress, data: bytes) -> Manifest:
    """Returns the manifest, after a check of the names and sizes that it lists. Its schema allows no path in a name."""
    file = f"{address}/{MANIFEST}"
    try:
        manifest = parse_manifest(file, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not a Tureen manifest: push the bundle again") from error
    check_listed_names(file, manifest)
    for name, record in manifest.files.items():
        limit, advice = size_limit(name)
        if record.size > limit:
            raise BundleError(f"{file} lists {name} with {record.size:,} bytes, the limit is {limit:,}: {advice}")
        if name == MANIFEST:
            raise BundleError(f"{file} lists itself: push the bundle again")
    return manifest


def _check_free_space(address: BundleAddress, partial: Path, manifest: Manifest) -> None:
    present = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    needed = sum(record.size for record in manifest.files.values()) - present
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise BundleTransferError(
            f"{address} needs {needed:,} bytes, and {partial.parent} has {free:,} free: delete files, or set "
            "TUREEN_CACHE_DIR to another directory"
        )


def _download_file(store: Store, partial: Path, name: str, record: FileRecord, progress: _Progress) -> None:
    """Downloads one file, from the byte where the last download stopped. Raises BundleTransferError if it differs."""
    file = partial / name
    unfinished = file.with_name(f".{file.name}.part")  # no file of a bundle begins with a dot
    if file.exists():  # verified by an earlier download
        os.replace(file, unfinished)
    digest, done = hashlib.sha256(), 0
    with unfinished.open("a+b") as opened:
        opened.seek(0)
        while done < record.size and (chunk := opened.read(2**20)):
            digest.update(chunk)
            done += len(chunk)
        resumed_at = done
        if opened.read(1):  # longer than listed
            raise _differs(store.address, name, unfinished)
        progress.add(done)
        for chunk in store.chunks(name, done, record.size):
            opened.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress.add(len(chunk))
        sync_file(opened)
    if done != record.size or digest.hexdigest() != record.sha256:
        error = _differs(store.address, name, unfinished)
        if not resumed_at:
            raise error
        progress.add(-done)  # its first part may be of another upload, so once more from the first byte on
        return _download_file(store, partial, name, record, progress)
    os.replace(unfinished, file)
    return None


def _differs(address: BundleAddress, name: str, unfinished: Path) -> BundleTransferError:
    """Removes the downloaded bytes, and returns the error about them."""
    unfinished.unlink()
    return BundleTransferError(
        f"{address}/{name} is not what its manifest describes (size or SHA-256 differ): try again, or push it again"
    )


@contextmanager
def _locked(file: Path, address: BundleAddress) -> Iterator[None]:
    """Holds the lock of a source. Waits for the process that holds it; the lock of a process ends with the process."""
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process downloads %s: waiting for it", address)
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _disk_error(address: BundleAddress, cache: Path, error: OSError) -> TureenError:
    if error.errno in _FULL_DISK:
        advice = "delete files, or set TUREEN_CACHE_DIR to another directory; the next download continues"
        return BundleTransferError(f"the disk of {cache} is full: {address} is not complete: {advice}")
    reason = error.strerror or type(error).__name__
    return BundleTransferError(f"{address} cannot be written to the cache {cache}: {reason}")


def _age(seconds: float) -> str:
    """Returns a duration in its largest unit, such as "3 hours"."""
    for unit, unit_s in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= unit_s:
            count = int(seconds // unit_s)
            return f"{count} {unit}{'s' * (count > 1)}"
    return "less than a minute"


class _Progress:
    """Prints the downloaded share to standard error, if it is a terminal. Logs the start in any case."""

    def __init__(self, address: BundleAddress, manifest: Manifest) -> None:
        self._total = sum(record.size for record in manifest.files.values())
        self._done = 0
        self._address = address
        self._is_shown = sys.stderr.isatty()
        logger.info("downloading %s: %d files, %.1f MB", address, len(manifest.files), self._total / 1e6)

    def add(self, count: int) -> None:
        self._done += count
        if self._is_shown:
            sys.stderr.write(f"\r{self._address}  {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_shown:
            with suppress(OSError):
                sys.stderr.write("\n")
