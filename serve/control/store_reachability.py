"""Checks whether the store of the operator's settings can be read, for `tureen doctor`. Changes nothing in it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from serve.control.revision_store import TIMEOUT_S, RevisionStore
from serve.control.schema import MIGRATIONS, recorded_version
from serve.control.state_directory import STORE_FILE

KNOWN_VERSION = len(MIGRATIONS)


@dataclass(frozen=True)
class StoreCheck:
    """The state of a store. It contains no URL, path, host name or user name.

    kind: "sqlite" or "postgresql". is_reachable: None if the file does not exist yet. schema_version: None if the store
    was not read; 0 if it has no tables yet. detail: one line for a person.
    """

    kind: str
    is_reachable: bool | None
    schema_version: int | None
    detail: str


def check_store(url: str | None, state_dir: Path) -> StoreCheck:
    """Returns the state of the store that a server with these settings would use.

    url: the value of --store; None: the file in the state directory. Raises ControlStoreError if the URL is invalid,
    because a server with this URL does not start.
    """
    store = RevisionStore(url or sa.URL.create("sqlite", database=str(state_dir / STORE_FILE)))
    kind = store.url.get_backend_name()
    engine = store.engine
    try:
        if store.file is not None:
            if not store.file.exists():
                return StoreCheck(kind, None, None, "does not exist yet; the server creates it at its first start")
            engine = _read_only(store.file)
        with engine.connect() as connection:
            version = recorded_version(connection)
    except ModuleNotFoundError as error:
        return StoreCheck(kind, False, None, f"{error.name} is not installed: install Tureen with its extra [postgres]")
    except (SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:  # its text may have a host or a user
        return StoreCheck(kind, False, None, f"cannot be read ({type(error).__name__})")
    finally:
        engine.dispose()
        store.close()
    if version > KNOWN_VERSION:
        detail = f"schema version {version}, above {KNOWN_VERSION}: run the later version of Tureen that made it"
        return StoreCheck(kind, True, version, detail)
    return StoreCheck(kind, True, version, f"schema version {version} of {KNOWN_VERSION}")


def _read_only(file: Path) -> sa.Engine:
    """Returns an engine for a SQLite file that cannot change the file."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    return sa.create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, timeout=TIMEOUT_S, uri=True), poolclass=sa.NullPool
    )
