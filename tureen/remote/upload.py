"""Uploads a bundle to an address: verifies the bundle, and sends the files that differ from those at the address."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tureen.bundle.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODEL_CARD,
    load_bundle,
    parse_manifest,
    read_listed_file,
    record_files,
)
from tureen.bundle.manifest import ENGINES_DIRECTORY, FileRecord, Manifest
from tureen.errors import BundleAddressError, BundleError, BundleTransferError
from tureen.remote.address import HUB, BundleAddress
from tureen.remote.hub_card import hub_card
from tureen.remote.store import Store, open_store


@dataclass(frozen=True)
class Upload:
    """The result of an upload. commit: of the hub; None: the store has no commits, or nothing differed."""

    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    commit: str | None


def push_bundle(path: Path, address: BundleAddress, *, message: str | None = None, is_private: bool = False) -> Upload:
    """Uploads the bundle at `path`, after it has verified each of its files, and returns the names of the files.

    On the hub the model card gets the metadata of the hub, and the manifest describes this card. message: of the
    commit; None: name and version of the model. is_private: whether a repository that the upload creates is private.
    Raises BundleError if the bundle is damaged, BundleTransferError if the host refuses, and BundleAddressError if the
    address cannot be written to.
    """
    if address.is_pinned:
        raise BundleAddressError(f"{address} names a commit, which cannot change: give a branch, or no revision")
    if is_private and address.scheme != HUB:
        raise BundleAddressError(f"{address}: only a repository of the hub can be private: remove --private")
    manifest = load_bundle(path).manifest
    for name, record in manifest.files.items():
        if name.startswith(f"{ENGINES_DIRECTORY}/"):
            read_listed_file(path, name, record)
    store = open_store(address)
    files: dict[str, Path | bytes] = {name: path / name for name in manifest.files}
    files[MANIFEST] = (path / MANIFEST).read_bytes()
    if address.scheme == HUB:
        manifest = _with_hub_card(path, manifest, files)
    remote = _remote_files(store)
    changed = [name for name, record in manifest.files.items() if remote.get(name) != record]
    manifest_record = record_files({MANIFEST: _bytes_of(files[MANIFEST])})[MANIFEST]
    if changed or remote.get(MANIFEST) != manifest_record:
        changed.append(MANIFEST)
    commit = None
    if changed:
        text = message or f"Push {manifest.name} {manifest.version}"
        commit = store.upload({name: files[name] for name in changed}, message=text, is_private=is_private)
    return Upload(tuple(changed), tuple(name for name in files if name not in changed), commit)


def _with_hub_card(path: Path, manifest: Manifest, files: dict[str, Path | bytes]) -> Manifest:
    """Replaces the model card and the manifest in `files` by those for the hub, and returns the manifest."""
    record = manifest.files.get(MODEL_CARD)
    card = "" if record is None else read_listed_file(path, MODEL_CARD, record).decode(errors="replace")
    data = hub_card(manifest, card).encode()
    records = {**manifest.files, **record_files({MODEL_CARD: data})}
    manifest = manifest.model_copy(update={"files": records})
    files[MODEL_CARD] = data
    files[MANIFEST] = (manifest.model_dump_json(indent=2) + "\n").encode()
    return manifest


def _bytes_of(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _remote_files(store: Store) -> dict[str, FileRecord]:
    """Returns the records of the files at the address, with that of the manifest; empty if there is no valid bundle.

    A file that does not have the size that the manifest at the address lists is left out.
    """
    try:
        store.resolve()
        if store.size(MANIFEST) is None:
            return {}
        data = store.read(MANIFEST, MAX_MANIFEST_BYTES)
        manifest = parse_manifest(f"{store.address}/{MANIFEST}", data.decode("utf-8-sig"))
    except BundleTransferError as error:
        if error.is_missing:
            return {}
        raise
    except (BundleError, UnicodeDecodeError):  # it is replaced
        return {}
    records = {name: record for name, record in manifest.files.items() if store.size(name) == record.size}
    return {**records, MANIFEST: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))}
