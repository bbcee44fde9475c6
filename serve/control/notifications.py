"""Detects that another process or machine may have changed the store of the settings.

For SQLite, polls a counter of the database, which takes little time. For PostgreSQL, receives the notifications that
`serve.control.revision_store` sends. Both can miss a change. So this module reports a possible change every few seconds
too.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

from serve.control.revision_store import CHANNEL, TIMEOUT_S, RevisionStore

SQLITE_POLL_S = 0.05
MAX_INTERVAL_S = 2.0
RETRY_S = 1.0

logger = logging.getLogger("tureen.control")


def store_changes(store: RevisionStore, *, max_interval_s: float = MAX_INTERVAL_S) -> AsyncGenerator[None, None]:
    """Yields when the store may have changed, and at least every `max_interval_s` seconds.

    Yields even if the store is unreachable. The caller closes the generator.
    """
    return _sqlite_changes(store, max_interval_s) if store.is_sqlite else _notifications(store, max_interval_s)


async def _sqlite_changes(store: RevisionStore, max_interval_s: float) -> AsyncGenerator[None, None]:
    polls, seen = 0, -1
    counter = _CommitCounter(store.file or Path())
    try:
        while True:
            try:
                version = await asyncio.to_thread(counter.read)
            except sqlite3.Error:
                version = seen  # the caller then reads the store, and gets the error
            polls += 1
            if version != seen or polls * SQLITE_POLL_S >= max_interval_s:
                seen, polls = version, 0
                yield
            await asyncio.sleep(SQLITE_POLL_S)
    finally:
        counter.close()


class _CommitCounter:
    """Reads a number that changes when another connection commits to the SQLite file.

    `read` runs on a thread while a task waits for it. If the task is cancelled, the task calls `close`, perhaps while
    the thread still reads. A lock makes `close` wait for the thread.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False

    def read(self) -> int:
        """Returns SQLite's data_version, which changes when another connection commits; 0 after `close`.

        Any thread may call this method. Raises sqlite3.Error if the file cannot be read. The next call then connects
        again.
        """
        with self._lock:
            if self._is_closed:
                return 0
            try:
                if self._connection is None:
                    uri = f"{self._file.absolute().as_uri()}?mode=rw"  # does not create the file; the store creates it
                    self._connection = sqlite3.connect(
                        uri, timeout=TIMEOUT_S, uri=True, check_same_thread=False, isolation_level=None
                    )
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                self._disconnect()
                raise
            return int(version)

    def close(self) -> None:
        """Closes the connection after the current read. A later read returns 0."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def _notifications(store: RevisionStore, max_interval_s: float) -> AsyncGenerator[None, None]:
    import psycopg  # an extra installs it

    url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                url, autocommit=True, connect_timeout=TIMEOUT_S, keepalives_idle=TIMEOUT_S, tcp_user_timeout=5000
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                yield
                while True:
                    async for _ in connection.notifies(timeout=max_interval_s, stop_after=1):
                        pass
                    yield
        except psycopg.Error:
            yield
            await asyncio.sleep(RETRY_S)
