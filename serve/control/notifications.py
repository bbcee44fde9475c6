"""Says when others may have changed a store: another process on this machine, or another machine.

SQLite tells it by a counter, which is cheap to look at; PostgreSQL sends a notification. Either may be missed, so a
look at the head follows now and then all the same.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

from serve.control.revision_store import CHANNEL, TIMEOUT_S, RevisionStore

SQLITE_LOOK_S = 0.05
AT_LEAST_EVERY_S = 2.0
RETRY_S = 1.0

logger = logging.getLogger("tureen.control")


def store_changes(store: RevisionStore) -> AsyncGenerator[None, None]:
    """Something to look at in the store, perhaps; every few seconds in any case, also where it cannot be reached.

    To be closed by whoever asks no more.
    """
    return _sqlite_changes(store) if store.is_sqlite else _notifications(store)


async def _sqlite_changes(store: RevisionStore) -> AsyncGenerator[None, None]:
    looks, seen = 0, -1
    counter = _Counter(store.file or Path())
    try:
        while True:
            try:
                version = await asyncio.to_thread(counter.read)
            except sqlite3.Error:
                version = seen  # whoever looks at the head says what is wrong
            looks += 1
            if version != seen or looks * SQLITE_LOOK_S >= AT_LEAST_EVERY_S:
                seen, looks = version, 0
                yield
            await asyncio.sleep(SQLITE_LOOK_S)
    finally:
        counter.close()


class _Counter:
    """Another number whenever another connection has committed to the file.

    Whoever waits for a thread may be cancelled while that goes on: SQLite's connection must not be closed under it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False

    def read(self) -> int:
        """On any thread; raises sqlite3.Error, after which the next call connects anew."""
        with self._lock:
            if self._is_closed:
                return 0
            try:
                if self._connection is None:
                    uri = f"{self._file.absolute().as_uri()}?mode=rw"  # never makes the file, which the store does
                    self._connection = sqlite3.connect(
                        uri, TIMEOUT_S, uri=True, check_same_thread=False, isolation_level=None
                    )
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                self._disconnect()
                raise
            return int(version)

    def close(self) -> None:
        """Once a read that is under way is done."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def _notifications(store: RevisionStore) -> AsyncGenerator[None, None]:
    import psycopg  # of an extra that not everybody has

    url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                url, autocommit=True, connect_timeout=TIMEOUT_S, keepalives_idle=TIMEOUT_S, tcp_user_timeout=5000
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                yield
                while True:
                    async for _ in connection.notifies(timeout=AT_LEAST_EVERY_S, stop_after=1):
                        pass
                    yield
        except psycopg.Error:
            yield
            await asyncio.sleep(RETRY_S)
