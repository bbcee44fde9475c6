import sqlite3

import pytest

from serve.control.revision_store import RevisionStore
from serve.control.store_reachability import KNOWN_VERSION, check_store
from serve.errors import ControlStoreError


def test_a_store_that_a_server_has_used_is_reachable_with_its_version(store, store_url, tmp_path):
    with store.reading():
        pass
    found = check_store(store_url, tmp_path)
    assert (found.kind, found.is_reachable, found.schema_version) == (store.url.get_backend_name(), True, KNOWN_VERSION)
    assert found.detail == f"schema version {KNOWN_VERSION} of {KNOWN_VERSION}"


def test_a_missing_store_is_not_created(tmp_path):
    found = check_store(None, tmp_path / "state")
    assert (found.kind, found.is_reachable, found.schema_version) == ("sqlite", None, None)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_has_no_version_and_stays_empty(tmp_path):
    sqlite3.connect(tmp_path / "control.db").close()
    (tmp_path / "control.db").touch()
    assert check_store(None, tmp_path).schema_version == 0
    assert (tmp_path / "control.db").read_bytes() == b""


def test_a_store_of_a_later_version_is_reported_and_not_changed(tmp_path):
    store = RevisionStore(f"sqlite:///{tmp_path / 'control.db'}")
    with store.writing() as connection:
        connection.exec_driver_sql(f"INSERT INTO tureen_schema VALUES ({KNOWN_VERSION + 1}, '')")
    store.close()
    found = check_store(None, tmp_path)
    assert (found.is_reachable, found.schema_version) == (True, KNOWN_VERSION + 1)
    assert "run the later version" in found.detail


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + bytes(100)])
def test_a_damaged_store_is_not_reachable_and_its_path_is_not_shown(tmp_path, content):
    (tmp_path / "control.db").write_bytes(content)
    found = check_store(None, tmp_path)
    assert found.is_reachable is False
    assert str(tmp_path) not in found.detail


def test_a_database_server_that_does_not_reply_is_not_reachable_and_its_url_is_not_shown(tmp_path):
    found = check_store("postgresql+psycopg://bob:hunter2@127.0.0.1:1/tureen", tmp_path)
    assert (found.kind, found.is_reachable, found.schema_version) == ("postgresql", False, None)
    assert not any(part in found.detail for part in ("bob", "hunter2", "127.0.0.1"))


def test_a_url_that_is_not_valid_is_an_error_as_at_the_start_of_a_server(tmp_path):
    with pytest.raises(ControlStoreError, match="--store is not the URL"):
        check_store("nonsense", tmp_path)
