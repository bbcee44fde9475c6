"""Stores the operator's settings in one append-only table. The last row is in force, and all rows are the history.

A row is a revision. A change is one INSERT of the next revision. The revision number is the primary key, so only one of
two concurrent writers succeeds. Each row contains the hash of the row before it. The database is SQLite by default, or
PostgreSQL; both run the same statements. Methods block, so async code calls them on threads. The methods raise
ControlStoreError if the database cannot be reached or fails.

The store connects at its first use, and creates or migrates the tables. If that fails, the next use tries again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from serve.control.schema import migrate
from serve.control.settings_state import SettingsState, format_time
from serve.control.state_directory import STORE_FILE, prepare_store_file
from serve.errors import BrokenHistoryError, ControlStoreError, StaleRevisionError, UnknownRevisionError
from serve.settings import Settings

CHANNEL = "tureen_revisions"  # for NOTIFY of PostgreSQL
TIMEOUT_S = 5  # for a lock of another writer, and for a database server that does not reply
BUSY_RETRY_S = 0.02
_FIRST_HASH = "0" * 64
_HASHED = (
    "revision",
    "at",
    "who",
    "action",
    "reason",
    "before",
    "after",
    "previous_hash",
)  # the hash excludes columns that are added later

_METADATA = sa.MetaData()
_REVISIONS = sa.Table(
    "tureen_revisions",
    _METADATA,
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
_TOKENS = sa.Table(
    "tureen_tokens",
    _METADATA,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True)
class Revision:
    """One row of the history: a change of the operator's settings.

    revision: number of the change, from 1. at: time of the change, UTC, ISO 8601. who: name of the operator's
    credential. action: kind of the change, such as "set" or "ramp". reason: text of the operator. before, after: the
    settings before and after the change, as JSON. previous_hash: `hash` of the row before. hash: see `expected_hash`.
    """

    revision: int
    at: str
    who: str
    action: str
    reason: str
    before: str
    after: str
    previous_hash: str
    hash: str

    @property
    def state(self) -> SettingsState:
        """The settings in force from this revision on."""
        return SettingsState.model_validate_json(self.after)

    def expected_hash(self) -> str:
        """Returns the SHA-256, in hexadecimal, of all columns of the row except `hash`."""
        rest = [getattr(self, name) for name in _HASHED]
        return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


_DEFAULTS = SettingsState().model_dump_json()
REVISION_0 = Revision(0, "", "", "", "", _DEFAULTS, _DEFAULTS, _FIRST_HASH, _FIRST_HASH)
"""The revision in force while the history is empty: the default settings."""


def next_revision(
    head: Revision, after: SettingsState, *, at: datetime, who: str, action: str, reason: str
) -> Revision:
    """Returns the row that follows `head`, with the settings `after`. Does not store the row."""
    row = Revision(
        revision=head.revision + 1,
        at=format_time(at),
        who=who,
        action=action,
        reason=reason,
        before=head.after,
        after=after.model_dump_json(),
        previous_hash=head.hash,
        hash="",
    )
    return Revision(**{**vars(row), "hash": row.expected_hash()})


class RevisionStore:
    """The history of the settings of one service in a database. The caller that creates the store closes it.

    Methods block, and raise ControlStoreError if the database cannot be reached or fails.
    """

    def __init__(self, url: str | sa.URL, before_first_use: Callable[[], None] = lambda: None) -> None:
        """url: sqlite:///PATH or postgresql+psycopg://…. Raises ControlStoreError if the URL is invalid.

        before_first_use: called before the first connection. It may create the directory of the SQLite file.
        """
        try:
            self.url = sa.make_url(url) if isinstance(url, str) else url
        except (SQLAlchemyError, ValueError):  # the text of the error may contain a part of the password
            raise ControlStoreError(
                "--store is not the URL of a store: give one such as postgresql+psycopg://user:password@host/database; "
                "write @, : and / in a password as %40, %3A and %2F"
            ) from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database or "") if self.is_sqlite else None
        if self.is_sqlite and self.url.database in (None, "", ":memory:"):
            raise ControlStoreError("--store names no file: give one such as sqlite:////var/lib/tureen/control.db")
        self._before_first_use = before_first_use
        self._is_prepared = False
        self._is_closed = False
        self._preparing = threading.Lock()
        with self.translate_errors():
            # PostgreSQL: a new connection for each use, which is rare. A kept connection would not detect that the
            # server was replaced. SQLite: the connection is kept, and its file is checked before each use.
            if self.is_sqlite:
                self.engine = sa.create_engine(self.url, creator=self._connect_to_file, poolclass=sa.QueuePool)
                sa.event.listen(self.engine, "connect", self._configure_connection)
                sa.event.listen(self.engine, "checkout", self._check_file)
                sa.event.listen(self.engine, "checkin", self._close_after_use)
            else:
                options = {"connect_timeout": TIMEOUT_S}
                self.engine = sa.create_engine(self.url, connect_args=options, poolclass=sa.NullPool)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yields a connection for reading. The first use creates or migrates the tables.

        Raises ControlStoreError if the database cannot be opened, or if it fails in the `with` block.
        """
        with self.translate_errors():
            self._prepare()
            with self.engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yields a connection in a transaction. The first use creates or migrates the tables.

        Commits at the end of the `with` block, or rolls back if the block raises. Raises ControlStoreError if the
        database cannot be opened, or if it fails in the block.
        """
        with self.translate_errors():
            self._prepare()
            with self.engine.begin() as connection:
                yield connection

    def _prepare(self) -> None:
        """Creates or migrates the tables at the first call. Later calls do nothing, even if the file was removed."""
        with self._preparing:
            if self._is_prepared:
                return
            self._before_first_use()
            if self.file is not None:
                self._make_file(self.file)
            migrate(self.engine, lock_timeout_s=TIMEOUT_S)
            self._is_prepared = True

    def _make_file(self, file: Path) -> None:
        """Creates an empty file that only its owner may access, if the file is missing.

        SQLite gives its additional files, such as the write-ahead log, the access rights of this file. Raises
        ControlStoreError if the file cannot be created.
        """
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise ControlStoreError(
                f"the store of the operator's settings, {self._public_url}, cannot be created: {error.strerror}"
            ) from None

    def _connect_to_file(self) -> sqlite3.Connection:
        """Returns a connection to the existing file. Does not create the file."""
        assert self.file is not None
        uri = f"{self.file.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, timeout=TIMEOUT_S, uri=True, check_same_thread=False)

    @property
    def _public_url(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def _configure_connection(self, connection: Any, record: Any) -> None:
        """Sets the modes WAL and FULL of SQLite, and records the identity of the file that the connection uses.

        With WAL, readers do not wait for a writer. With FULL, a change survives a power cut.
        """
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite ignores its timeout if two processes change the mode of a new file at the same time.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(BUSY_RETRY_S)
        connection.execute("PRAGMA synchronous=FULL")
        record.info["file"] = self._file_identity()

    def _check_file(self, connection: Any, record: Any, proxy: Any) -> None:
        """Raises DisconnectionError if the file of the connection was replaced or removed. The pool then reconnects."""
        if record.info["file"] != self._file_identity():
            raise sa.exc.DisconnectionError

    def _close_after_use(self, connection: Any, record: Any) -> None:
        if self._is_closed:
            record.invalidate()

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.file or "")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def head(self) -> Revision:
        """Returns the last revision, which is in force; REVISION_0 if there is none.

        Raises ControlStoreError if this version of Tureen cannot read the revision, because a newer version wrote it.
        """
        with self.reading() as connection:
            row = _head(connection)
        try:
            row.state  # noqa: B018 - raises if it cannot be parsed
        except ValidationError:
            raise ControlStoreError(
                f"revision {row.revision} of the operator's settings cannot be read by this version of Tureen: a newer "
                "version wrote it"
            ) from None
        return row

    def append(self, row: Revision, token_files: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Appends a row that `next_revision` returned. For PostgreSQL, notifies the servers that use the store.

        token_files: contents by SHA-256, which are stored in the same transaction. A stored file is never removed,
        because a rollback may need it.

        Raises StaleRevisionError if the row does not follow the last revision. After a ControlStoreError it is unknown
        whether the row was stored; the caller can compare the row with the result of `head`.
        """
        with self.writing() as connection:
            head = _head(connection)
            if head.hash != row.previous_hash:
                raise StaleRevisionError(head.revision)
            try:
                connection.execute(_REVISIONS.insert().values(**vars(row)))
            except IntegrityError:
                raise StaleRevisionError(row.revision) from None
            for sha256, content in token_files.items():
                if connection.execute(sa.select(_TOKENS.c.at).where(_TOKENS.c.sha256 == sha256)).one_or_none() is None:
                    connection.execute(_TOKENS.insert().values(sha256=sha256, at=row.at, content=content))
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(row.revision))))

    def revision(self, number: int) -> Revision:
        """Returns the revision of this number. Raises UnknownRevisionError if it does not exist."""
        if number == 0:
            return REVISION_0
        with self.reading() as connection:
            found = connection.execute(_REVISIONS.select().where(_REVISIONS.c.revision == number)).one_or_none()
        if found is None:
            raise UnknownRevisionError(number)
        return Revision(**found._mapping)

    def token_file(self, sha256: str) -> bytes | None:
        """Returns the content of the token file with this SHA-256; None if it is not stored."""
        with self.reading() as connection:
            query = sa.select(_TOKENS.c.content).where(_TOKENS.c.sha256 == sha256)
            content: bytes | None = connection.execute(query).scalar_one_or_none()
            return content

    def history(self, limit: int, before: int | None = None) -> list[Revision]:
        """Returns at most `limit` revisions, newest first. before: returns only revisions with lower numbers."""
        query = _REVISIONS.select().order_by(_REVISIONS.c.revision.desc()).limit(limit)
        if before is not None:
            query = query.where(_REVISIONS.c.revision < before)
        with self.reading() as connection:
            return [Revision(**row._mapping) for row in connection.execute(query)]

    def verify(self) -> int:
        """Checks the hashes of the whole history, and returns the number of its rows.

        Raises BrokenHistoryError, which names the row, if a row was changed, removed or inserted. Cannot detect rows
        that were removed from the end. To detect them, compare the last hash with the last hash in the server's log.
        """
        last = REVISION_0
        with self.reading() as connection:
            for found in connection.execute(_REVISIONS.select().order_by(_REVISIONS.c.revision)):
                row = Revision(**found._mapping)
                if row.revision != last.revision + 1:
                    raise BrokenHistoryError(last.revision + 1, "it is missing")
                if row.previous_hash != last.hash or row.before != last.after:
                    raise BrokenHistoryError(row.revision, "it does not follow the revision before it")
                if row.hash != row.expected_hash():
                    raise BrokenHistoryError(row.revision, "its hash does not match its content")
                last = row
        return last.revision

    def close(self) -> None:
        """Closes every connection. One that another thread uses is closed after its use."""
        self._is_closed = True
        self.engine.dispose()

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Converts errors of the database in the `with` block to ControlStoreError.

        The message does not contain the password that is in the URL.
        """
        try:
            yield
        except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            first_line = (str(cause).splitlines() or [""])[0]
            raise ControlStoreError(
                f"the store of the operator's settings, {self._public_url}, failed: {first_line}"
            ) from error


def open_store(settings: Settings, model: str) -> RevisionStore:
    """Returns the store at the URL --store. If --store is not given, returns the SQLite store in the state directory.

    model: name of the model. Earlier versions of Tureen named the file of the store after the model. Raises
    ControlStoreError if the URL is invalid.
    """
    if settings.store is not None:
        return RevisionStore(settings.store)
    url = sa.URL.create("sqlite", database=str(settings.state_dir / STORE_FILE))
    return RevisionStore(url, before_first_use=lambda: prepare_store_file(settings.state_dir, model))


def _head(connection: sa.Connection) -> Revision:
    found = connection.execute(_REVISIONS.select().order_by(_REVISIONS.c.revision.desc()).limit(1)).one_or_none()
    return REVISION_0 if found is None else Revision(**found._mapping)
