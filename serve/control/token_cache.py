"""Keeps the token files that operators added in a directory, from which every process of a server reads them.

The name of a file is the SHA-256 of its content. The store of the settings has the same files. The directory makes them
available to worker processes, and to a server that starts while the store is unreachable.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from serve.errors import ControlStoreError
from tureen.atomic_file import write_atomically
from tureen.bundle.token_file import SUFFIX, Token, parse_token
from tureen.errors import TokenFileError


class TokenCache:
    """The token files in a directory. Its methods block."""

    def __init__(self, directory: Path) -> None:
        """directory: it is created when the first file is written."""
        self._directory = directory

    def has(self, sha256: str) -> bool:
        """Returns whether the directory has the file with this SHA-256, unchanged."""
        try:
            return hashlib.sha256(self._file(sha256).read_bytes()).hexdigest() == sha256
        except OSError:
            return False

    def write(self, content: bytes) -> str:
        """Writes a token file, unless the directory has it unchanged. Returns its SHA-256.

        Raises ControlStoreError if the file cannot be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        file = self._file(sha256)
        try:
            if not file.exists() or file.read_bytes() != content:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomically(file, content, mode=0o600, has_other_writers=True)
        except OSError as error:
            raise ControlStoreError(f"{self._directory} cannot be written: {error.strerror}") from None
        return sha256

    def remove(self, sha256: str) -> None:
        """Removes a file, if the directory has it."""
        with contextlib.suppress(OSError):
            self._file(sha256).unlink()

    def read(self, sha256: str) -> Token:
        """Returns the token in a file. Raises TokenFileError if the file is missing or was changed."""
        try:
            content = self._file(sha256).read_bytes()
        except OSError as error:
            raise TokenFileError(f"its file cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise TokenFileError("its file was changed after it was written")
        return parse_token(content, "its file")

    def _file(self, sha256: str) -> Path:
        return self._directory / f"{sha256}{SUFFIX}"
