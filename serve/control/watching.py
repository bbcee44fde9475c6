"""Says when others may have changed a store: another process on this machine, or another machine.

SQLite tells it by a counter, which is cheap to look at; PostgreSQL sends a notification. Either may be missed, so a
look at the head follows now and then all the same.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator

from serve.control.store import CHANNEL, TIMEOUT_S, Store

SQLITE_LOOK_S = 0.05
AT_LEAST_EVERY_S = 2.0
RETRY_S = 1.0

logger = logging.getLogger("tureen.control")


def hints(store: Store) -> AsyncGenerator[None, None]:
    """Something to look at in the store, perhaps; every few seconds in any case, also where it cannot be reached.

    To be closed by whoever asks no more.
    """
    return _sqlite_changes(store) if store.is_sqlite else _notifications(store)


async def _sqlite_changes(store: Store) -> AsyncGenerator[None, None]:
    looks, seen = 0, -1
    connection: sqlite3.Connection | None = None
    try:
        while True:
            try:
                if connection is None:
                    path = store.url.database or ""
                    connection = await asyncio.to_thread(
                        sqlite3.connect, path, TIMEOUT_S, check_same_thread=False, isolation_level=None
                    )
                version = await asyncio.to_thread(_data_version, connection)
            except sqlite3.Error:
                connection, version = None, seen  # whoever looks at the head says what is wrong
            looks += 1
            if version != seen or looks * SQLITE_LOOK_S >= AT_LEAST_EVERY_S:
                seen, looks = version, 0
                yield
            await asyncio.sleep(SQLITE_LOOK_S)
    finally:
        if connection is not None:
            connection.close()


def _data_version(connection: sqlite3.Connection) -> int:
    """Another number whenever another connection has committed."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


async def _notifications(store: Store) -> AsyncGenerator[None, None]:
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
