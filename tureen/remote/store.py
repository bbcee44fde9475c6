"""Reads and writes the files of one address, by fsspec and huggingface_hub. Does not verify or cache the files.

Imports fsspec, huggingface_hub and s3fs when an address of their scheme is opened.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tureen.bundle.bundle import MANIFEST
from tureen.errors import BundleAddressError, BundleTransferError
from tureen.remote.address import FILE, HUB, S3, BundleAddress
from tureen.remote.transfer_errors import response_status, transfer_errors
from tureen.vendor_telemetry import disable_vendor_telemetry
from tureen.version import __version__

CHUNK_BYTES: Final = 8 * 2**20  # of one request
BEYOND_THE_END: Final = 416  # the status of a range that begins after the last byte
TIMEOUT_S: Final = 10.0  # of the request that resolves a revision
_PACKAGES: Final = {HUB: ("fsspec", "huggingface_hub"), S3: ("fsspec", "s3fs"), FILE: ("fsspec",)}
_EXTRAS: Final = {HUB: "hub", S3: "s3", FILE: "hub"}


class Store(ABC):
    """The files at one address. Raises BundleTransferError if the host refuses, or UnreachableHostError."""

    def __init__(self, address: BundleAddress, filesystem: Any) -> None:
        self.address = address
        self._filesystem = filesystem  # fsspec.AbstractFileSystem

    @abstractmethod
    def resolve(self) -> str | None:
        """Pins the later reads to the current commit of the revision, and returns the commit; None: it has none."""

    @abstractmethod
    def upload(self, files: Mapping[str, Path | bytes], *, message: str, is_private: bool) -> str | None:
        """Writes the files, given by name, and returns the commit; None: the store has none."""

    @abstractmethod
    def _path(self, name: str) -> str:
        """Returns the path of a file in the file system of fsspec."""

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if it does not exist."""
        with transfer_errors(self.address):
            try:
                return int(self._filesystem.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file. Raises BundleTransferError if it is missing or has more than `max_bytes` bytes."""
        size = self.size(name)
        if size is None:
            raise BundleTransferError(f"there is no bundle at {self.address}: it has no {name} (404)")
        if size > max_bytes:
            raise BundleTransferError(f"{self.address}/{name} has {size:,} bytes, the limit is {max_bytes:,}")
        return b"".join(self.chunks(name, 0, size))

    def chunks(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """Yields the bytes of a file from `offset` on, one request for each chunk. Ends at `size` at the latest."""
        options = {"block_size": CHUNK_BYTES, "cache_type": "none", "size": size}
        with transfer_errors(self.address), self._filesystem.open(self._path(name), "rb", **options) as file:
            file.seek(offset)
            while offset < size:
                try:
                    chunk = file.read(min(CHUNK_BYTES, size - offset))
                except Exception as error:
                    if response_status(error) == BEYOND_THE_END:
                        return
                    raise
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk


class DirectoryStore(Store):
    """A directory of S3 or of this machine. Its files have no common revision."""

    def resolve(self) -> None:
        return None

    def upload(self, files: Mapping[str, Path | bytes], *, message: str, is_private: bool) -> None:
        """Writes the manifest last, so that it never lists a file that is not yet there."""
        with transfer_errors(self.address):
            for name in sorted(files, key=lambda name: name == MANIFEST):
                content, path = files[name], self._path(name)
                if self.address.scheme == FILE:  # on S3 it would create the bucket
                    self._filesystem.makedirs(self._filesystem._parent(path), exist_ok=True)
                if isinstance(content, bytes):
                    self._filesystem.pipe_file(path, content)
                else:
                    self._filesystem.put_file(str(content), path)

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self.address.root, self.address.folder, name) if part)


class HubStore(Store):
    """A model repository of the Hugging Face hub. An upload is one commit."""

    def __init__(self, address: BundleAddress) -> None:
        from huggingface_hub import HfApi, HfFileSystem
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        super().__init__(address, HfFileSystem(skip_instance_cache=True))
        self._api = HfApi(library_name="tureen", library_version=__version__)
        self._commit: str | None = None

    def resolve(self) -> str:
        with transfer_errors(self.address):
            revision = self.address.revision
            info = self._api.model_info(self.address.root, revision=revision, timeout=TIMEOUT_S)
        if info.sha is None:
            raise BundleTransferError(f"the hub names no commit for {self.address}: check the revision")
        self._commit = info.sha
        return info.sha

    def size(self, name: str) -> int | None:
        with transfer_errors(self.address):
            path = self._path_in_repository(name)
            found = self._api.get_paths_info(self.address.root, [path], revision=self._commit)
        return next((int(one.size) for one in found if one.path == path and hasattr(one, "size")), None)

    def upload(self, files: Mapping[str, Path | bytes], *, message: str, is_private: bool) -> str:
        """Creates the repository and the branch if they do not exist."""
        from huggingface_hub import CommitOperationAdd

        root, branch = self.address.root, self.address.revision
        with transfer_errors(self.address):
            self._api.create_repo(root, private=is_private or None, exist_ok=True)
            if branch is not None:
                self._api.create_branch(root, branch=branch, exist_ok=True)
            additions = [
                CommitOperationAdd(path_in_repo=self._path_in_repository(name), path_or_fileobj=content)
                for name, content in files.items()
            ]
            return self._api.create_commit(root, additions, commit_message=message, revision=branch).oid

    def _path(self, name: str) -> str:
        return f"{self.address.root}@{self._commit}/{self._path_in_repository(name)}"

    def _path_in_repository(self, name: str) -> str:
        return f"{self.address.folder}/{name}" if self.address.folder else name


def open_store(address: BundleAddress) -> Store:
    """Returns the store of the address. Sends no request.

    Raises BundleAddressError if a package that the scheme needs is not installed.
    """
    disable_vendor_telemetry()
    for package in _PACKAGES[address.scheme]:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise BundleAddressError(
                f"{address} needs the package {error.name}, which is not installed: "
                f"pip install 'tureen[{_EXTRAS[address.scheme]}]'"
            ) from error
    if address.scheme == HUB:
        return HubStore(address)
    import fsspec

    filesystem = fsspec.filesystem(address.scheme, skip_instance_cache=True, use_listings_cache=False)
    return DirectoryStore(address, filesystem)
