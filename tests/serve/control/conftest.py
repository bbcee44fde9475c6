"""Stores to test with: SQLite in a file, PostgreSQL as a server of its own."""

import contextlib
import tempfile
from pathlib import Path

import pytest

from serve.control.store import Store
from tests.serve.control.postgres import Postgres


@pytest.fixture(scope="session")
def postgres():
    with tempfile.TemporaryDirectory(prefix="tureen-postgres-") as directory:
        server = Postgres(Path(directory) / "server")
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.db'}"
    server = request.getfixturevalue("postgres")
    database = f"t{abs(hash(str(tmp_path)))}"
    with (
        contextlib.closing(Store(server.url)) as admin,
        admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.exec_driver_sql(f"CREATE DATABASE {database}")
    return server.url.rsplit("/", 1)[0] + f"/{database}"


@pytest.fixture
def store(store_url):
    store = Store(store_url)
    yield store
    store.close()
