"""Names the files in the state directory of a service, and renames the files of earlier versions of Tureen.

Earlier versions named the files after the model, so a server with another model started without the operator's
settings. A store with such a name is renamed to a fixed name before it is opened, under a lock on the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from serve.errors import ControlStoreError

STORE_FILE = "control.db"
LAST_KNOWN_FILE = "last-known.json"
TOKEN_FILE = "admin-token"  # noqa: S105 - a file name
TOKEN_DIRECTORY = "tokens"  # noqa: S105 - of the tokens that operators added
LOCK_TIMEOUT_S = 10.0  # longer than a store waits for the lock of another process
LOCK_RETRY_S = 0.05
MODE = 0o600
SQLITE_HEADER = b"SQLite format 3\0"

logger = logging.getLogger("tureen.control")


def make_state_directory(directory: Path) -> None:
    """Creates the directory if it is missing, with access for its owner only.

    Raises ControlStoreError if the directory cannot be created.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ControlStoreError(
            f"the state directory {directory} cannot be created ({error.strerror}): give another --state-dir"
        ) from None


def prepare_store_file(directory: Path, model: str) -> None:
    """Creates the directory if it is missing, and renames a store of an earlier Tureen version to control.db.

    If control.db exists, renames nothing. The renamed store is MODEL.db if that file is a store, else the store that
    was written last. Other stores stay unchanged. model: name of the model. Removes the access rights of other users
    from control.db. Raises ControlStoreError if the store to rename is in use or damaged, or if the directory cannot be
    used.
    """
    make_state_directory(directory)
    file = directory / STORE_FILE
    if not file.exists():
        with locked(directory):
            if not file.exists() and (earlier := _earlier_store(directory, model)) is not None:
                _rename(earlier, file)
    _remove_rights_of_others(file)
    if file.exists() and (unused := directory / f"{model}.db") != file and unused.exists():
        logger.warning("%s is not used, because %s exists: a service has one store for all models", unused, file)


def earlier_last_known(directory: Path, model: str, *, has_own_store: bool) -> Path | None:
    """Returns the path to which an earlier version of Tureen wrote the last known settings. The file may be missing.

    model: name of the model. has_own_store: whether the store of the settings is in this directory, not at the URL
    --store.
    """
    try:
        store = _earlier_store(directory, model) if has_own_store else None
    except OSError:
        store = None
    return _last_known_of(store or directory / f"{model}.db")


def _last_known_of(store: Path) -> Path:
    return store.with_name(f"{store.name.removesuffix('.db')}.{LAST_KNOWN_FILE}")


def _earlier_store(directory: Path, model: str) -> Path | None:
    named = directory / f"{model}.db"
    # Reads all times before it opens a file, because SQLite creates files beside a store that it reads.
    written_at = {file: _written_at(file) for file in directory.glob("*.db") if file.name != STORE_FILE}
    found = [file for file in written_at if (file == named or _is_database(file)) and _may_be_store(file)]
    return named if named in found else max(found, key=written_at.__getitem__, default=None)


def _is_database(file: Path) -> bool:
    """Returns whether the file has the header of SQLite."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    except OSError:
        return False


def _may_be_store(file: Path) -> bool:
    """Returns whether the file may be a store: it has the table of revisions, or cannot be read as a database."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'tureen_revisions'").fetchall())
    except sqlite3.Error:
        return True


def _written_at(file: Path) -> float:
    times = []
    for path in (file, file.with_name(f"{file.name}-wal")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def _rename(earlier: Path, file: Path) -> None:
    """Merges the write-ahead log of the store `earlier` into the store's file, then renames this file to `file`.

    Renames the file with the last known settings too. Raises ControlStoreError if another process uses the store, or if
    the store is damaged or cannot be renamed.
    """
    try:
        uri = f"{earlier.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        if mode != "delete":
            raise sqlite3.OperationalError("database is locked")
        earlier.rename(file)
        with contextlib.suppress(OSError):  # a failure loses nothing: the store holds the same settings
            if not (file.parent / LAST_KNOWN_FILE).exists():
                _last_known_of(earlier).rename(file.parent / LAST_KNOWN_FILE)
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ControlStoreError(
            f"{earlier}, the store of an earlier version, cannot be renamed to {file.name}: {reason}; stop the servers "
            "of the earlier version that use it, or restore it"
        ) from error
    logger.info("renamed %s, the store of an earlier version, to %s", earlier, file.name)
    if others := sorted(other.name for other in file.parent.glob("*.db") if other != file):
        logger.warning("other stores in %s, which are not used: %s", file.parent, ", ".join(others))


def _remove_rights_of_others(file: Path) -> None:
    """Removes the access rights of other users from a store. Earlier versions of Tureen did not restrict access."""
    for path in (file, *(file.with_name(f"{file.name}-{side}") for side in ("wal", "shm"))):
        with contextlib.suppress(OSError):  # the file is missing, or belongs to another user
            if path.stat().st_mode & 0o077:
                path.chmod(MODE)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a lock on the directory in the `with` block. The system releases the lock if the process dies.

    Raises ControlStoreError if the directory cannot be read, or if another process holds the lock for more than
    LOCK_TIMEOUT_S seconds.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ControlStoreError(f"the state directory {directory} cannot be read: {error.strerror}") from None
    try:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise ControlStoreError(f"another process holds the lock on {directory}") from None
                time.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)
