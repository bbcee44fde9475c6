"""The store on SQLite and on a real PostgreSQL: one writer wins, nothing is half done, nothing acknowledged is lost."""

import contextlib
import dataclasses
import hashlib
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context

import pytest
import sqlalchemy as sa

from serve.control.revision_store import REVISION_0, RevisionStore, next_revision
from serve.control.settings_state import SettingsState
from serve.errors import (
    BrokenHistoryError,
    ControlStoreError,
    StaleRevisionError,
    UnknownRevisionError,
)
from tests.patience import DEADLINE_S
from tests.serve.control.linearizability import Read, Write, violations

PROCESSES = get_context("forkserver")  # a fork of a process without connections, which has imported the store once
PROCESSES.set_forkserver_preload(["psycopg", "serve.control.revision_store", __name__])


def append(store, head, beta=0.5, reason="a test", token_file=None):
    """Append a revision. With `token_file`, the settings have its SHA-256 under the name of the revision too."""
    files = {} if token_file is None else {hashlib.sha256(token_file).hexdigest(): token_file}
    tokens = head.state.tokens | {f"t{head.revision}": sha256 for sha256 in files}
    after = SettingsState(default_beta=beta, tokens=tokens)
    row = next_revision(head, after, at=datetime.now(UTC), who="ada", action="set", reason=reason)
    store.append(row, files)
    return row


def test_an_empty_store_is_at_revision_0_with_the_defaults(store):
    assert store.head() == REVISION_0
    assert store.head().state == SettingsState()
    assert store.verify() == 0


def test_a_change_is_stored_with_operator_time_and_reason(store, store_url):
    append(store, store.head(), 0.7, "attack on β uploads")
    with contextlib.closing(RevisionStore(store_url)) as another:
        row = another.head()
    assert (row.revision, row.who, row.action, row.reason) == (1, "ada", "set", "attack on β uploads")
    assert row.state.default_beta == 0.7
    assert abs(datetime.fromisoformat(row.at).timestamp() - time.time()) < 60
    assert SettingsState.model_validate_json(row.before) == SettingsState()


def test_a_token_file_is_stored_with_its_revision_and_once(store):
    row = append(store, store.head(), token_file=b"fog")
    (sha256,) = row.state.tokens.values()
    assert store.token_file(sha256) == b"fog"
    assert store.token_file("0" * 64) is None
    with pytest.raises(StaleRevisionError):
        append(store, REVISION_0, token_file=b"haze")
    append(store, row, token_file=b"fog")
    assert token_files(store) == {sha256}


def test_of_two_writers_at_the_same_revision_one_wins(store):
    head = store.head()
    append(store, head, 0.7)
    with pytest.raises(StaleRevisionError) as stale:
        append(store, head, 0.8)
    assert stale.value.head == 1
    assert store.head().state.default_beta == 0.7


def test_history_goes_back_from_the_newest(store):
    for _ in range(5):
        append(store, store.head())
    assert [row.revision for row in store.history(2)] == [5, 4]
    assert [row.revision for row in store.history(9, before=3)] == [2, 1]
    assert store.revision(2).revision == 2
    with pytest.raises(UnknownRevisionError):
        store.revision(6)


@pytest.mark.parametrize("column", [field.name for field in dataclasses.fields(REVISION_0)])
def test_a_row_that_was_tampered_with_is_found(store, column):
    for _ in range(3):
        append(store, store.head())
    value = "9" if column == "revision" else "'x'"
    with store.writing() as connection:
        connection.execute(sa.text(f"UPDATE tureen_revisions SET {column} = {value} WHERE revision = 2"))
    with pytest.raises(BrokenHistoryError):
        store.verify()


def test_a_deleted_row_is_detected(store):
    for _ in range(3):
        append(store, store.head())
    with store.writing() as connection:
        connection.execute(sa.text("DELETE FROM tureen_revisions WHERE revision = 2"))
    with pytest.raises(BrokenHistoryError, match="revision 2: it is missing"):
        store.verify()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all.db",
        "postgresql+psycopg://ada:secret@127.0.0.1:1/none",
        "nonsense://x",
        "foo",
        "postgresql+psycopg://ada:secret@ss:wo@h:secretport/x",
        "mysql://ada:secret@127.0.0.1/none",
    ],
)
def test_an_unreachable_store_is_reported_without_its_password(url):
    with pytest.raises(ControlStoreError) as caught:
        RevisionStore(url).head()
    assert "secret" not in str(caught.value)


def test_sqlite_keeps_acknowledged_changes_through_a_power_cut(tmp_path):
    url = f"sqlite:///{tmp_path / 'control.db'}"
    with contextlib.closing(RevisionStore(url)) as store, store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def write_many(url, seed, seconds):
    """Changes by compare-and-set for a while, each on what was last seen, sometimes on what is known to be old."""
    store, draw, seen, writes = RevisionStore(url), random.Random(seed), [], []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        head = draw.choice(seen[-3:]) if seen and draw.random() < 0.3 else store.head()
        began = time.monotonic()
        try:
            made = append(store, head, draw.random()).revision
        except StaleRevisionError:
            made = None
        writes.append(Write(began, time.monotonic(), head.revision, made))
        seen.append(store.head())
    return writes


def read_many(url, name, seconds):
    store, reads = RevisionStore(url), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        revision = store.head().revision
        reads.append(Read(began, time.monotonic(), name, revision))
    return reads


def test_writers_and_readers_in_separate_processes_see_one_history(store, store_url):
    with ProcessPoolExecutor(5, mp_context=PROCESSES) as pool:
        writing = [pool.submit(write_many, store_url, seed, 3) for seed in range(3)]
        reading = [pool.submit(read_many, store_url, f"reader {n}", 3) for n in range(2)]
        writes = [write for future in writing for write in future.result()]
        reads = [read for future in reading for read in future.result()]
    assert violations(writes, reads) == []
    made = [write.created for write in writes if write.created is not None]
    assert sorted(made) == list(range(1, len(made) + 1))
    assert sum(write.created is None for write in writes) > 5
    assert store.verify() == len(made) > 0


@pytest.mark.parametrize(
    ("writes", "reads", "said"),
    [
        ([Write(0, 1, 0, 1), Write(2, 3, 0, 1)], [], "created twice"),
        ([Write(0, 1, 0, 1), Write(2, 3, 0, 2)], [], "a stale one, or a lost update"),
        ([Write(0, 1, 0, 1)], [Read(2, 3, "r", 1), Read(4, 5, "r", 0)], "r went back from 1 to 0"),
        ([Write(4, 5, 0, 1)], [Read(0, 1, "r", 1)], "before its write began"),
        ([Write(0, 1, 0, 1)], [Read(2, 3, "r", 0)], "saw 0 after 1 was acknowledged"),
        ([Write(0, 1, 0, None)], [], "was refused"),
        ([Write(4, 5, 0, 1), Write(0, 1, 1, 2)], [], "existed before"),
    ],
)
def test_the_checker_finds_planted_violations(writes, reads, said):
    assert any(said in violation for violation in violations(writes, reads))


def append_until_killed(url, step, at, acknowledged):
    """Append revisions and send the number of each, until this process dies at passage number `at` of the step."""
    store, passed = RevisionStore(url), 0

    def die(name):
        nonlocal passed
        passed += name == step
        if name == step and passed == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(store.engine, "begin", lambda connection: die("begin"))
    sa.event.listen(store.engine, "before_cursor_execute", lambda c, cu, statement, *r: die("before " + statement[:6]))
    sa.event.listen(store.engine, "after_cursor_execute", lambda c, cu, statement, *r: die("after " + statement[:6]))
    sa.event.listen(store.engine, "commit", lambda connection: die("before commit"))
    while True:
        head = store.head()
        revision = append(store, head, token_file=f"file {head.revision}".encode()).revision
        die("after commit")
        acknowledged.send(revision)


def start_to_be_killed(url, step="", at=0):
    """Start `append_until_killed` in a process; return it, and the connection with the revisions."""
    received, sent = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=append_until_killed, args=(url, step, at, sent))
    process.start()
    sent.close()
    return process, received


def token_files(store):
    """Return the SHA-256 of each stored token file. Fails if a file has another."""
    with store.reading() as connection:
        rows = connection.execute(sa.text("SELECT sha256, content FROM tureen_tokens")).all()
    assert all(hashlib.sha256(bytes(row.content)).hexdigest() == row.sha256 for row in rows)
    return {row.sha256 for row in rows}


def all_received(connection):
    """Return what the process has sent before it ended."""
    found = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(connection.recv())
    return found


STEPS = ("begin", "before SELECT", "after SELECT", "before INSERT", "after INSERT", "before commit", "after commit")


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_step_leaves_a_change_complete_or_absent(store, store_url, rounds):
    """rounds × 7 steps; of the slow ones 210 for each database."""
    draw = random.Random(rounds)
    for _ in range(rounds):
        for step in STEPS:
            before = store.head().revision
            process, received = start_to_be_killed(store_url, step, draw.randrange(1, 6))
            acknowledged = all_received(received)
            process.join(DEADLINE_S)
            assert process.exitcode == -signal.SIGKILL
            made = store.verify() - before
            assert made - len(acknowledged) in (0, 1), step
            assert acknowledged == list(range(before + 1, before + 1 + len(acknowledged)))
            assert token_files(store) == set(store.head().state.tokens.values())


def test_a_connection_in_use_at_the_close_is_closed_after_its_use(tmp_path):
    store = RevisionStore(f"sqlite:///{tmp_path / 'control.db'}")
    store.head()
    for _ in range(2):  # the second was made after the close, by a thread that began before it
        with store.reading() as connection:
            in_use = connection.connection.dbapi_connection
            store.close()
            assert connection.execute(sa.text("SELECT 1")).scalar() == 1
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            in_use.execute("SELECT 1")


def test_a_process_killed_at_random_has_lost_nothing_it_acknowledged(tmp_path):
    url = f"sqlite:///{tmp_path / 'control.db'}"
    store, draw = RevisionStore(url), random.Random(0)
    for _ in range(10):
        before = store.head().revision
        process, received = start_to_be_killed(url)
        first = received.recv()
        time.sleep(draw.random() * 0.05)
        process.kill()
        acknowledged = [first, *all_received(received)]
        process.join(DEADLINE_S)
        assert store.verify() - before - len(acknowledged) in (0, 1)
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "control.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
