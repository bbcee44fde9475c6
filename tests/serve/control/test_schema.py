"""The tables of the store: made once however many servers start, migrated in order, refused if of a newer Tureen."""

import contextlib
import sqlite3
import threading
from datetime import UTC, datetime
from multiprocessing import get_context

import pytest
import sqlalchemy as sa

from serve.control.credential_store import Credentials
from serve.control.revision_store import REVISION_0, RevisionStore, next_revision
from serve.control.schema import MIGRATIONS, migrate
from serve.control.settings_state import SettingsState
from serve.errors import ControlStoreError
from serve.jobs.job_store import JobRecords, JobRequest
from tests.patience import DEADLINE_S

SERVERS, ROUNDS = 6, 10
STARTED_S = 200  # before a server that has not come fails the test; no measure of how long it should take
LOCK_TIMEOUT_S = 5

# As SQLAlchemy made them at commit a94cd6b, which kept no version.
EARLIER_TABLES = (
    "CREATE TABLE tureen_revisions (revision INTEGER NOT NULL, at VARCHAR(32) NOT NULL, who TEXT NOT NULL, "
    "action VARCHAR(32) NOT NULL, reason TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, "
    "previous_hash VARCHAR(64) NOT NULL, hash VARCHAR(64) NOT NULL, PRIMARY KEY (revision))",
    "CREATE TABLE tureen_credentials (name VARCHAR(63) NOT NULL, role VARCHAR(16) NOT NULL, "
    "sha256 VARCHAR(64) NOT NULL, made_at VARCHAR(32) NOT NULL, PRIMARY KEY (name))",
    "CREATE TABLE tureen_revoked_credentials (sha256 VARCHAR(64) NOT NULL, at VARCHAR(32) NOT NULL, "
    "PRIMARY KEY (sha256))",
)
EARLIER_JOBS = (
    "CREATE TABLE tureen_jobs (id VARCHAR(32) NOT NULL, state VARCHAR(32) NOT NULL, who TEXT NOT NULL, "
    "request TEXT NOT NULL, default_beta FLOAT, created_at VARCHAR(32) NOT NULL, times TEXT NOT NULL, images BIGINT, "
    "done BIGINT NOT NULL, failed BIGINT NOT NULL, retries_failed BOOLEAN NOT NULL, error TEXT, "
    "fingerprint VARCHAR(64), owner TEXT, lease_until FLOAT NOT NULL, wanted VARCHAR(32), PRIMARY KEY (id))",
    "CREATE INDEX ix_tureen_jobs_state ON tureen_jobs (state)",
    "CREATE INDEX ix_tureen_jobs_created_at ON tureen_jobs (created_at)",
)


@contextlib.contextmanager
def connected(store):
    """A transaction that prepares nothing."""
    with contextlib.suppress(FileExistsError):
        if store.file is not None:
            store.file.touch(exist_ok=False)
    with store.engine.begin() as connection:
        yield connection


def use_every_table(url):
    """As a server does at its start."""
    with contextlib.closing(RevisionStore(url)) as store:
        return store.head().revision, len(Credentials(store).all()), sum(JobRecords(store).counts().values())


def start_with_others(urls, barrier):
    """Opens each store at the same time as the other servers."""
    try:
        for url in urls:
            barrier.wait(STARTED_S)
            assert use_every_table(url) == (0, 0, 0)
    except BaseException:
        barrier.abort()  # the others end too
        raise


def test_servers_that_start_together_on_an_empty_store_create_its_tables_once(request, tmp_path):
    urls = [f"sqlite:///{tmp_path / str(n)}.db" for n in range(ROUNDS)]
    postgres = request.getfixturevalue("postgres")
    with (
        contextlib.closing(RevisionStore(postgres.url)) as admin,
        admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        for n in range(ROUNDS):
            connection.exec_driver_sql(f"CREATE DATABASE together_{n}")
    urls += [f"{postgres.url.rpartition('/')[0]}/together_{n}" for n in range(ROUNDS)]
    context = get_context("spawn")
    barrier = context.Barrier(SERVERS)
    servers = [context.Process(target=start_with_others, args=(urls, barrier), daemon=True) for _ in range(SERVERS)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert [server.exitcode for server in servers] == [0] * SERVERS
    with contextlib.closing(RevisionStore(urls[-1])) as store, store.reading() as connection:
        versions = connection.execute(sa.text("SELECT version FROM tureen_schema")).scalars().all()
    assert versions == list(range(1, len(MIGRATIONS) + 1))


@pytest.mark.parametrize("had_jobs", [True, False])
def test_a_store_without_a_version_keeps_its_rows_and_its_hash_chain(store_url, had_jobs):
    rows = [REVISION_0]
    for n in range(3):
        state = SettingsState(default_beta=n / 10)
        rows.append(next_revision(rows[-1], state, at=datetime.now(UTC), who="ada", action="set", reason="r"))
    with contextlib.closing(RevisionStore(store_url)) as store:
        with connected(store) as connection:
            for statement in (*EARLIER_TABLES, *(EARLIER_JOBS if had_jobs else ())):
                connection.exec_driver_sql(statement)
            names = list(vars(rows[1]))
            columns = ", ".join(f":{name}" for name in names)
            for row in rows[1:]:
                connection.execute(sa.text(f"INSERT INTO tureen_revisions VALUES ({columns})"), vars(row))
            connection.execute(sa.text("INSERT INTO tureen_credentials VALUES ('ada', 'read', 'x', 't')"))
        assert store.head() == rows[-1]
        assert store.verify() == 3
        assert [one.name for one in Credentials(store).all()] == ["ada"]
        records = JobRecords(store)
        record = records.submit(JobRequest(input="/in", output="/out"), who="ada", default_beta=None, max_jobs=10)
        assert records.get(record.id) == record


def test_a_later_migration_runs_once_in_order_and_breaks_no_hash(store_url):
    with contextlib.closing(RevisionStore(store_url)) as store:
        row = next_revision(REVISION_0, SettingsState(), at=datetime.now(UTC), who="ada", action="set", reason="r")
        store.append(row)
        later = (
            *MIGRATIONS,
            ("ALTER TABLE tureen_revisions ADD COLUMN ticket TEXT NOT NULL DEFAULT ''",),
            ("UPDATE tureen_revisions SET ticket = 'none'",),
        )
        for _ in range(2):
            migrate(store.engine, later, lock_timeout_s=LOCK_TIMEOUT_S)
        with connected(store) as connection:
            assert connection.execute(sa.text("SELECT ticket FROM tureen_revisions")).scalars().all() == ["none"]
            versions = sa.text("SELECT version FROM tureen_schema ORDER BY version")
            assert connection.execute(versions).scalars().all() == list(range(1, len(later) + 1))
        store.append(next_revision(row, SettingsState(), at=datetime.now(UTC), who="ada", action="set", reason="r"))
        assert store.verify() == 2


def test_a_migration_that_fails_leaves_the_version_before_it(store_url):
    with contextlib.closing(RevisionStore(store_url)) as store:
        store.head()
        broken = (*MIGRATIONS, ("ALTER TABLE tureen_revisions ADD COLUMN ticket TEXT", "SELECT * FROM no_such_table"))
        with pytest.raises(sa.exc.SQLAlchemyError):
            migrate(store.engine, broken, lock_timeout_s=LOCK_TIMEOUT_S)
        with connected(store) as connection:
            assert "ticket" not in [column["name"] for column in sa.inspect(connection).get_columns("tureen_revisions")]
        migrate(store.engine, (*MIGRATIONS, broken[-1][:1]), lock_timeout_s=LOCK_TIMEOUT_S)


def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(store_url):
    with contextlib.closing(RevisionStore(store_url)) as store, store.writing() as connection:
        connection.execute(sa.text("INSERT INTO tureen_schema VALUES (1000, 't')"))
    with contextlib.closing(RevisionStore(store_url)) as store, pytest.raises(ControlStoreError, match="version 1000"):
        store.head()


def test_a_migration_waits_for_a_lock_no_longer_than_its_limit(store_url):
    with contextlib.closing(RevisionStore(store_url)) as holder, contextlib.closing(RevisionStore(store_url)) as waiter:
        holder.head()
        later = (*MIGRATIONS, ("ALTER TABLE tureen_revisions ADD COLUMN ticket TEXT",))
        with holder.engine.begin() as connection:
            if holder.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("LOCK TABLE tureen_revisions")
            with pytest.raises(sa.exc.OperationalError):
                migrate(waiter.engine, later, lock_timeout_s=1)
        migrate(waiter.engine, later, lock_timeout_s=1)


def columns_of(connection):
    inspector = sa.inspect(connection)
    return {
        table: {
            column["name"]: (str(column["type"]).partition("(")[0], column["nullable"])
            for column in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
        if table != "tureen_schema"
    }


def test_the_first_migration_makes_the_tables_of_the_version_before_it(store_url, tmp_path):
    with contextlib.closing(RevisionStore(store_url)) as store:
        with connected(store):
            pass  # creates the file
        migrate(store.engine, MIGRATIONS[:1], lock_timeout_s=LOCK_TIMEOUT_S)
        with connected(store) as connection:
            made = columns_of(connection)
    with (
        contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'earlier.db'}")) as store,
        connected(store) as connection,
    ):
        for statement in (*EARLIER_TABLES, *EARLIER_JOBS):
            connection.exec_driver_sql(statement)
        earlier = columns_of(connection)
    assert {table: set(columns) for table, columns in made.items()} == {
        table: set(columns) for table, columns in earlier.items()
    }
    if "sqlite" in store_url:
        assert made == earlier


def test_the_file_of_a_store_is_its_owners_alone(tmp_path):
    file = tmp_path / "control.db"
    with contextlib.closing(RevisionStore(f"sqlite:///{file}")) as store:
        store.append(
            next_revision(REVISION_0, SettingsState(), at=datetime.now(UTC), who="a", action="set", reason="r")
        )
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("control.db", "control.db-wal", "control.db-shm"), 0o600)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_is_refused_and_never_overwritten(tmp_path, content):
    file = tmp_path / "control.db"
    file.write_bytes(content)
    with (
        contextlib.closing(RevisionStore(f"sqlite:///{file}")) as store,
        pytest.raises(ControlStoreError, match="failed: "),
    ):
        store.head()
    assert file.read_bytes() == content


def test_parallel_threads_on_a_new_store_wait_for_its_tables(tmp_path):
    barrier, found = threading.Barrier(8), []
    with contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'control.db'}")) as store:

        def use():
            barrier.wait(DEADLINE_S)
            found.append(store.head())

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [REVISION_0] * 8
    with contextlib.closing(sqlite3.connect(tmp_path / "control.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
