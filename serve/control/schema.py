"""Creates the tables of the store by ordered migrations, and records the version of the schema.

Knows nothing about the content of the rows.

A migration is a list of statements that SQLite and PostgreSQL both accept. It runs once, under a lock, in one
transaction with the row that records its version. A released migration never changes. After a migration, the previous
version of Tureen can still use the tables: a new column has a default, and no column is removed while servers of that
version may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from serve.control.settings_state import format_time
from serve.errors import ControlStoreError

_ADVISORY_LOCK = 0x74757265656E  # "tureen"
_VERSIONS = sa.Table(
    "tureen_schema",
    sa.MetaData(),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(32), nullable=False),
)

# IF NOT EXISTS: releases without the table tureen_schema created these tables at their first use.
VERSION_1 = (
    """
    CREATE TABLE IF NOT EXISTS tureen_revisions (
        revision INTEGER NOT NULL PRIMARY KEY,
        at VARCHAR(32) NOT NULL,
        who TEXT NOT NULL,
        action VARCHAR(32) NOT NULL,
        reason TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        previous_hash VARCHAR(64) NOT NULL,
        hash VARCHAR(64) NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS tureen_credentials (
        name VARCHAR(63) NOT NULL PRIMARY KEY,
        role VARCHAR(16) NOT NULL,
        sha256 VARCHAR(64) NOT NULL,
        made_at VARCHAR(32) NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS tureen_revoked_credentials (
        sha256 VARCHAR(64) NOT NULL PRIMARY KEY,
        at VARCHAR(32) NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS tureen_jobs (
        id VARCHAR(32) NOT NULL PRIMARY KEY,
        state VARCHAR(32) NOT NULL,
        who TEXT NOT NULL,
        request TEXT NOT NULL,
        default_beta FLOAT,
        created_at VARCHAR(32) NOT NULL,
        times TEXT NOT NULL,
        images BIGINT,
        done BIGINT NOT NULL,
        failed BIGINT NOT NULL,
        retries_failed BOOLEAN NOT NULL,
        error TEXT,
        fingerprint VARCHAR(64),
        owner TEXT,
        lease_until FLOAT NOT NULL,
        wanted VARCHAR(32)
    )
    """,
    "CREATE INDEX IF NOT EXISTS ix_tureen_jobs_state ON tureen_jobs (state)",
    "CREATE INDEX IF NOT EXISTS ix_tureen_jobs_created_at ON tureen_jobs (created_at)",
)

# SQLite, too, keeps bytes unchanged in a column of the type BYTEA.
VERSION_2 = (
    """
    CREATE TABLE tureen_tokens (
        sha256 VARCHAR(64) NOT NULL PRIMARY KEY,
        at VARCHAR(32) NOT NULL,
        content BYTEA NOT NULL
    )
    """,
)

Migrations = Sequence[Sequence[str]]
MIGRATIONS: Migrations = (VERSION_1, VERSION_2)
"""The migrations in order. The first creates version 1 of the tables; each later one leads to the next version."""


def migrate(engine: sa.Engine, migrations: Migrations = MIGRATIONS, *, lock_timeout_s: int) -> None:
    """Migrates the tables to the last version.

    If several processes call this function, one migrates and the others wait. Raises ControlStoreError if a newer
    version of Tureen migrated the tables. Raises SQLAlchemyError if the database fails, or if PostgreSQL does not grant
    the lock within lock_timeout_s seconds.
    """
    with engine.connect() as connection:
        if _version(connection, migrations) == len(migrations):
            return
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{lock_timeout_s}s'")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        _VERSIONS.create(connection, checkfirst=True)
        for version in range(_version(connection, migrations) + 1, len(migrations) + 1):
            for statement in migrations[version - 1]:
                connection.exec_driver_sql(statement)
            connection.execute(_VERSIONS.insert().values(version=version, at=format_time(datetime.now(UTC))))


def recorded_version(connection: sa.Connection) -> int:
    """Returns the schema version of the tables; 0 if no version is recorded. Changes nothing."""
    if not sa.inspect(connection).has_table(_VERSIONS.name):
        return 0
    version: int = connection.execute(sa.select(sa.func.coalesce(sa.func.max(_VERSIONS.c.version), 0))).scalar_one()
    return version


def _version(connection: sa.Connection, migrations: Migrations) -> int:
    """Returns the schema version of the tables; 0 if no version is recorded.

    Raises ControlStoreError if the version is above that of the last migration.
    """
    version = recorded_version(connection)
    if version > len(migrations):
        raise ControlStoreError(
            f"the store of the operator's settings has schema version {version}, and this Tureen knows versions up to "
            f"{len(migrations)}: run the newer Tureen that made it"
        )
    return version
