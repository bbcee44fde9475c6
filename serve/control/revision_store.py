"""Where the operator's settings are kept: one table to which rows are added, state and history in one.

A change is one INSERT of the next revision, whose number is the primary key: of two writers one wins, and neither a
change without its history nor a history without its change can be. Each row holds the hash of the one before it.
SQLite by default, PostgreSQL by URL; the same statements for both. Blocks: called on threads.

A store connects at its first use, which makes or migrates the tables. If that fails, the next use tries again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from serve.control.schema import migrate
from serve.control.settings_state import SettingsState, format_time
from serve.errors import BrokenHistoryError, ControlStoreError, StaleRevisionError, UnknownRevisionError

CHANNEL = "tureen_revisions"  # of PostgreSQL's NOTIFY
TIMEOUT_S = 5  # for another writer, or for a server that does not answer
BUSY_RETRY_S = 0.02
_FIRST_HASH = "0" * 64
_HASHED = ("revision", "at", "who", "action", "reason", "before", "after", "previous_hash")  # a column more is none

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


@dataclass(frozen=True)
class Revision:
    """One row of the history. at: UTC, ISO 8601. before, after: JSON of SettingsState."""

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
        """What was in force from then on."""
        return SettingsState.model_validate_json(self.after)

    def expected_hash(self) -> str:
        """SHA-256, in hexadecimal, of all the rest of the row."""
        rest = [getattr(self, name) for name in _HASHED]
        return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


_DEFAULTS = SettingsState().model_dump_json()
REVISION_0 = Revision(0, "", "", "", "", _DEFAULTS, _DEFAULTS, _FIRST_HASH, _FIRST_HASH)
"""The head of a history in which nothing has happened yet."""


def next_revision(
    head: Revision, after: SettingsState, *, at: datetime, who: str, action: str, reason: str
) -> Revision:
    """The row that follows on the head."""
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
    """One service's settings in a database. Whoever opened it closes it."""

    def __init__(self, url: str | sa.URL, before_first_use: Callable[[], None] = lambda: None) -> None:
        """url: sqlite:///PATH or postgresql+psycopg://…; raises ControlStoreError if no store can have this URL.

        before_first_use: prepares what the file of SQLite lies in; raises ControlStoreError.
        """
        try:
            self.url = sa.make_url(url) if isinstance(url, str) else url
        except (SQLAlchemyError, ValueError):  # whose words may hold a part of the password
            raise ControlStoreError(
                "the store is no URL: give one such as postgresql+psycopg://user:password@host/database, with @, : and "
                "/ in a password written as %40, %3A and %2F"
            ) from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database or "") if self.is_sqlite else None
        if self.is_sqlite and self.url.database in (None, "", ":memory:"):
            raise ControlStoreError("the store is no file: give one such as sqlite:////var/lib/tureen/control.db")
        self._before_first_use = before_first_use
        self._is_prepared = False
        self._preparing = threading.Lock()
        with self.told():
            # A connection for each use, which is seldom: a kept one sees nothing of a server that was replaced. One to
            # a file is kept, and its file looked at before each use.
            if self.is_sqlite:
                self.engine = sa.create_engine(self.url, creator=self._connect_to_file, poolclass=sa.QueuePool)
                sa.event.listen(self.engine, "connect", self._begin_with_file)
                sa.event.listen(self.engine, "checkout", self._is_same_file)
            else:
                options = {"connect_timeout": TIMEOUT_S}
                self.engine = sa.create_engine(self.url, connect_args=options, poolclass=sa.NullPool)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to prepared tables; raises ControlStoreError."""
        with self.told():
            self._prepare()
            with self.engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection to prepared tables, in a transaction that ends with the block; raises ControlStoreError."""
        with self.told():
            self._prepare()
            with self.engine.begin() as connection:
                yield connection

    def _prepare(self) -> None:
        """Once for each store: a file that is removed later is not made anew, since an empty one has lost settings."""
        with self._preparing:
            if self._is_prepared:
                return
            self._before_first_use()
            if self.file is not None:
                self._make_file(self.file)
            migrate(self.engine, lock_timeout_s=TIMEOUT_S)
            self._is_prepared = True

    def _make_file(self, file: Path) -> None:
        """Make an empty file for its owner alone, if there is none; SQLite gives the files beside it the same mode."""
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise ControlStoreError(
                f"the store of the operator's settings, {self._shown_url}, cannot be made: {error.strerror}"
            ) from None

    def _connect_to_file(self) -> sqlite3.Connection:
        """To the file that is there: sqlite3 makes no other in its place."""
        assert self.file is not None
        uri = f"{self.file.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, TIMEOUT_S, uri=True, check_same_thread=False)

    @property
    def _shown_url(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def _begin_with_file(self, connection: Any, record: Any) -> None:
        """What is acknowledged survives a power cut, and readers never wait for a writer."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait for its own timeout where two processes change the mode of a new file at once.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(BUSY_RETRY_S)
        connection.execute("PRAGMA synchronous=FULL")
        record.info["file"] = self._file()

    def _is_same_file(self, connection: Any, record: Any, proxy: Any) -> None:
        """Has the pool connect anew where the file is no longer the one that the connection is to."""
        if record.info["file"] != self._file():
            raise sa.exc.DisconnectionError

    def _file(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.file or "")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def head(self) -> Revision:
        """The last revision, which is in force; raises ControlStoreError."""
        with self.reading() as connection:
            row = _head(connection)
        try:
            row.state  # noqa: B018 - read, and so readable
        except ValidationError:
            raise ControlStoreError(
                f"revision {row.revision} of the operator's settings cannot be read by this version of Tureen: a newer "
                "one wrote it"
            ) from None
        return row

    def append(self, row: Revision) -> None:
        """Add what `next_revision` made.

        Raises StaleRevisionError where its head is no longer the last one, ControlStoreError where nobody knows
        whether it was added: look at the head.
        """
        with self.writing() as connection:
            head = _head(connection)
            if head.hash != row.previous_hash:
                raise StaleRevisionError(head.revision)
            try:
                connection.execute(_REVISIONS.insert().values(**vars(row)))
            except IntegrityError:
                raise StaleRevisionError(row.revision) from None
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(row.revision))))

    def revision(self, number: int) -> Revision:
        """One row; raises UnknownRevisionError or ControlStoreError."""
        if number == 0:
            return REVISION_0
        with self.reading() as connection:
            found = connection.execute(_REVISIONS.select().where(_REVISIONS.c.revision == number)).one_or_none()
        if found is None:
            raise UnknownRevisionError(number)
        return Revision(**found._mapping)

    def history(self, limit: int, before: int | None = None) -> list[Revision]:
        """So many rows, the newest first, of those before a revision where one is given; raises ControlStoreError."""
        wanted = _REVISIONS.select().order_by(_REVISIONS.c.revision.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(_REVISIONS.c.revision < before)
        with self.reading() as connection:
            return [Revision(**row._mapping) for row in connection.execute(wanted)]

    def verify(self) -> int:
        """Walk the whole history; how many rows it has. Raises BrokenHistoryError or ControlStoreError.

        Finds every row that was changed, taken out or put in. Rows taken off the end leave no trace in what is left:
        who must know of these keeps the last hash elsewhere, as the server's log does.
        """
        last = REVISION_0
        with self.reading() as connection:
            for found in connection.execute(_REVISIONS.select().order_by(_REVISIONS.c.revision)):
                row = Revision(**found._mapping)
                if row.revision != last.revision + 1:
                    raise BrokenHistoryError(last.revision + 1, "it is missing")
                if row.previous_hash != last.hash or row.before != last.after:
                    raise BrokenHistoryError(row.revision, "it does not follow on the one before")
                if row.hash != row.expected_hash():
                    raise BrokenHistoryError(row.revision, "its hash is not that of its content")
                last = row
        return last.revision

    def close(self) -> None:
        """End every connection."""
        self.engine.dispose()

    @contextmanager
    def told(self) -> Iterator[None]:
        """A database's errors as ours, without the URL, which may hold a password."""
        try:
            yield
        except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            first_line = (str(cause).splitlines() or [""])[0]
            raise ControlStoreError(
                f"the store of the operator's settings, {self._shown_url}, failed: {first_line}"
            ) from error


def _head(connection: sa.Connection) -> Revision:
    found = connection.execute(_REVISIONS.select().order_by(_REVISIONS.c.revision.desc()).limit(1)).one_or_none()
    return REVISION_0 if found is None else Revision(**found._mapping)
