"""Parses the address of a bundle. Does not read or write anything at the address.

hf://OWNER/NAME[@REVISION][/FOLDER]   a model repository of the Hugging Face hub
s3://BUCKET[/PREFIX]                  S3, or a server with its protocol
file:///DIRECTORY                     a directory of this machine, for example of a mounted volume
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from tureen.errors import BundleAddressError, did_you_mean, printable, truncated

HUB: Final = "hf"
S3: Final = "s3"
FILE: Final = "file"
FORMS: Final = {
    HUB: "hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME@REVISION/FOLDER",
    S3: "s3://BUCKET/PREFIX",
    FILE: "file:///DIRECTORY",
}

# Two letters at least, because a Windows path begins with one. pathlib shortens "hf://a/b" to "hf:/a/b".
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class BundleAddress:
    """The address of a bundle. Its text form is `str(address)`."""

    scheme: str  # HUB, S3 or FILE
    root: str  # OWNER/NAME, or the bucket; empty for FILE
    folder: str = ""  # of the bundle, without a slash at its end; absolute for FILE
    revision: str | None = None  # branch, tag or commit of the hub; None: its default branch

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        folder = f"/{self.folder}" if self.folder and self.scheme != FILE else self.folder
        return f"{self.scheme}://{self.root}{revision}{folder}"

    @property
    def is_pinned(self) -> bool:
        """Whether the address names a commit, whose files never change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def cache_name(self) -> str:
        """The name of the cache directory for all revisions of this source."""
        source = str(BundleAddress(self.scheme, self.root, self.folder))
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[:60]
        return f"{readable}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def parse_address(text: Path | str) -> BundleAddress | None:
    """Returns the address in `text`, or None if `text` is a path that exists, or has no scheme.

    Accepts one slash in place of two, because pathlib.Path("hf://a/b") is "hf:/a/b". Raises BundleAddressError if the
    scheme is unknown, or if the rest does not have the form that the scheme needs.
    """
    text = str(text)
    match = _ADDRESS.fullmatch(text)
    if match is None or os.path.exists(text):
        return None
    scheme, rest = match[1].lower(), match[2]
    if scheme not in FORMS:
        raise BundleAddressError(
            f"{_shown(text)} has the scheme {scheme!r}, which Tureen does not know{did_you_mean(scheme, FORMS)}; the "
            f"forms of an address are {', '.join(FORMS.values())}"
        )
    parts = [part for part in rest.split("/") if part]
    if {".", ".."} & set(parts) or not text.isprintable():
        raise _wrong_form(scheme, text)
    if scheme == FILE:
        if rest.startswith("//") and not rest.startswith("///"):  # that names a host
            raise _wrong_form(scheme, text)
        return BundleAddress(FILE, "", "/" + "/".join(unquote(part) for part in parts))
    if scheme == S3:
        if not parts or not _NAME.fullmatch(parts[0]):
            raise _wrong_form(scheme, text)
        return BundleAddress(S3, parts[0], "/".join(parts[1:]))
    if len(parts) < 2:
        raise _wrong_form(scheme, text)
    name, at, revision = parts[1].partition("@")
    revision = unquote(revision)
    if not _NAME.fullmatch(parts[0]) or not _NAME.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
        raise _wrong_form(scheme, text)
    return BundleAddress(HUB, f"{parts[0]}/{name}", "/".join(parts[2:]), revision if at else None)


def _wrong_form(scheme: str, text: str) -> BundleAddressError:
    return BundleAddressError(f"{_shown(text)} is not an address of a bundle: give {FORMS[scheme]}")


def _shown(text: str) -> str:
    return truncated(printable(text), 200)
