"""The store that an earlier version named after the model is found again."""

import contextlib
import os
import sqlite3
import time

import pytest

from serve.control.state_directory import prepare_store_file

MODELS = ("aaa", "mmm", "zzz")


def leave_store(directory, model, age_s):
    """A store as an earlier version's server leaves it, written so many seconds ago, whose revisions name the model."""
    file = directory / f"{model}.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE tureen_revisions (who TEXT)")
        connection.execute("INSERT INTO tureen_revisions VALUES (?)", [model])
        connection.commit()
    os.utime(file, (time.time() - age_s,) * 2)


def who_is_in(file):
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT who FROM tureen_revisions").fetchone()[0]


@pytest.mark.parametrize("last", MODELS)
def test_of_several_stores_the_last_written_one_is_used(tmp_path, last):
    for model in MODELS:
        leave_store(tmp_path, model, 10 if model == last else 864_000)

    prepare_store_file(tmp_path, "another")

    assert who_is_in(tmp_path / "control.db") == last


def test_the_store_of_the_served_model_precedes_a_later_one(tmp_path):
    leave_store(tmp_path, "aaa", 864_000)
    leave_store(tmp_path, "zzz", 10)

    prepare_store_file(tmp_path, "aaa")

    assert who_is_in(tmp_path / "control.db") == "aaa"


def test_a_file_that_is_no_database_is_never_used(tmp_path):
    leave_store(tmp_path, "aaa", 864_000)
    (tmp_path / "Thumbs.db").write_bytes(b"pictures")

    prepare_store_file(tmp_path, "another")

    assert who_is_in(tmp_path / "control.db") == "aaa"
    assert (tmp_path / "Thumbs.db").read_bytes() == b"pictures"
