"""The settings in force in a server: others' changes, what is due, and a store that goes away and comes back."""

import asyncio
import contextlib
import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from serve.control.change import apply_change, parse_change
from serve.control.credential_store import Credential
from serve.control.replica import SettingsReplica, StoreSnapshot, read_snapshot, write_snapshot
from serve.control.revision_store import REVISION_0, RevisionStore, next_revision
from serve.control.settings_state import SettingsState
from serve.control.token_cache import TokenCache
from serve.errors import ControlStoreError, StaleRevisionError
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH

SOON_S = 20  # how long anything may take before a test fails


@contextlib.asynccontextmanager
async def replica_of(url, snapshot=None):
    with contextlib.closing(RevisionStore(url)) as store:
        replica = SettingsReplica(store, snapshot)
        replica.seen = []
        replica.reachable = []
        await replica.open()
        replica.subscribe(lambda row: replica.seen.append(row.revision), replica.reachable.append)
        try:
            yield replica
        finally:
            await replica.close()


async def change(replica, **settings):
    after = apply_change(
        replica.state,
        parse_change({"reason": "a test", **settings}),
        who="ada",
        now=datetime.now(UTC),
        in_force=0.5,
        curve=UNMEASURED_STRENGTH,
    )
    return await replica.append(replica.head, after, who="ada", action="set", reason="a test")


async def until(is_so):
    async with asyncio.timeout(SOON_S):
        while not is_so():
            await asyncio.sleep(0.01)


def test_a_change_notifies_immediately_and_survives_the_process(store_url):
    async def first():
        async with replica_of(store_url) as replica:
            await change(replica, default_beta=0.8)
            assert replica.seen == [0, 1]

    async def second():
        async with replica_of(store_url) as replica:
            assert replica.seen == [1]
            assert replica.state.default_beta == 0.8

    asyncio.run(first())
    asyncio.run(second())


def test_two_servers_on_one_store_follow_each_other(store_url):
    async def both():
        async with replica_of(store_url) as one, replica_of(store_url) as other:
            for n in range(5):
                await change(one if n % 2 else other, default_beta=n / 10)
                await until(lambda n=n: one.head.revision == other.head.revision == n + 1)
            assert one.seen == other.seen == list(range(6))
            stale = one.head
            await change(other, default_beta=0.9)
            with pytest.raises(StaleRevisionError):
                await one.append(stale, SettingsState(), who="ada", action="set", reason="too late")
            assert one.state.default_beta == 0.9

    asyncio.run(both())


def test_a_due_change_is_applied_once_by_the_first_server(store_url):
    async def both():
        async with replica_of(store_url) as one, replica_of(store_url) as other:
            await change(one, default_beta=0.9, ttl_s=1)
            await until(lambda: one.head.revision == other.head.revision == 2)
            assert one.state == other.state == SettingsState()
            await asyncio.sleep(0.3)
            assert [row.action for row in one.store.history(9)] == ["revert", "set"]

    asyncio.run(both())


def test_a_change_due_while_no_server_ran_is_applied_at_the_start(store_url):
    async def run():
        async with replica_of(store_url) as replica:
            await change(replica, default_beta=0.9, ttl_s=1)
        await asyncio.sleep(1.1)
        async with replica_of(store_url) as replica:
            await until(lambda: replica.state.default_beta is None)

    asyncio.run(run())


def test_waiting_for_a_revision_ends_with_it_or_with_the_time(store_url):
    async def run():
        async with replica_of(store_url) as replica:
            await replica.wait_for_revision_after(0, 0.05)
            waiting = asyncio.create_task(replica.wait_for_revision_after(0, SOON_S))
            await asyncio.sleep(0.01)
            await change(replica, default_beta=0.9)
            await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_a_lost_postgresql_keeps_the_known_settings_active(postgres, tmp_path):
    async def run():
        async with replica_of(postgres.url, tmp_path / "snapshot.json") as replica:
            await change(replica, default_beta=0.8)
            await until(lambda: (read_snapshot(tmp_path / "snapshot.json") or replica).head == replica.head)
            postgres.stop()
            await until(lambda: replica.reachable[-1] is False)
            assert replica.state.default_beta == 0.8
            with pytest.raises(ControlStoreError):
                await change(replica, default_beta=0.1)
            assert replica.state.default_beta == 0.8
        async with replica_of(postgres.url, tmp_path / "snapshot.json") as replica:
            assert (replica.state.default_beta, replica.reachable) == (0.8, [False])
            postgres.start()
            await until(lambda: replica.reachable[-1] is True)
        async with replica_of(postgres.url, tmp_path / "snapshot.json") as replica:
            postgres.stop()
            await until(lambda: replica.reachable[-1] is False)
            postgres.start()
            await until(lambda: replica.reachable[-1] is True)
            await change(replica, default_beta=0.3)

    try:
        asyncio.run(run())
    finally:
        with contextlib.suppress(Exception):
            postgres.start()


def start_without_store(tmp_path, snapshot, earlier=None):
    """The replica of a server whose store was never there, as it begins."""

    async def run():
        with contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'missing' / 'control.db'}")) as store:
            replica = SettingsReplica(store, snapshot, earlier)
            await replica.open()
            assert replica.unreachable_since is not None
            await replica.close()
            return replica

    return asyncio.run(run())


@pytest.fixture
def known(tmp_path):
    row = next_revision(
        REVISION_0, SettingsState(default_beta=0.8), at=datetime.now(UTC), who="ada", action="set", reason="r"
    )
    return StoreSnapshot(row, (Credential("ada", "read", "0" * 64, "2027-01-31T08:00:00Z"),))


@pytest.mark.parametrize("is_of_earlier_version", [False, True])
def test_a_start_without_the_store_serves_the_last_known_settings(tmp_path, known, is_of_earlier_version):
    snapshot = tmp_path / "snapshot.json"
    earlier = tmp_path / "model.last-known.json"
    write_snapshot(earlier if is_of_earlier_version else snapshot, known)
    replica = start_without_store(tmp_path, snapshot, earlier)
    assert (replica.head, replica.credentials) == (known.head, known.credentials)


def test_a_snapshot_of_an_earlier_version_holds_no_credentials_and_is_read(tmp_path, known):
    write_snapshot(tmp_path / "snapshot.json", StoreSnapshot(known.head))
    document = json.loads((tmp_path / "snapshot.json").read_text())
    del document["credentials"]
    (tmp_path / "snapshot.json").write_text(json.dumps(document))
    replica = start_without_store(tmp_path, tmp_path / "snapshot.json")
    assert (replica.head, replica.credentials) == (known.head, None)


@pytest.mark.parametrize("damage", [lambda text: text.replace("0.8", "0.1"), lambda text: text[:50], lambda text: "[]"])
def test_a_damaged_snapshot_is_not_used_and_is_logged(tmp_path, known, caplog, damage):
    snapshot = tmp_path / "snapshot.json"
    write_snapshot(snapshot, known)
    snapshot.write_text(damage(snapshot.read_text()))
    replica = start_without_store(tmp_path, snapshot)
    assert replica.head == REVISION_0
    assert "the last known settings in" in caplog.text
    assert "the server's defaults are in force" in caplog.text


def test_a_server_that_never_reached_its_store_follows_it_when_it_appears(tmp_path, known):
    async def run():
        file = tmp_path / "later" / "control.db"
        with contextlib.closing(RevisionStore(f"sqlite:///{file}")) as store:
            replica = SettingsReplica(store, tmp_path / "snapshot.json")
            await replica.open()
            reachable = []
            replica.subscribe(lambda row: None, reachable.append)
            assert reachable == [False]
            with contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'elsewhere.db'}")) as elsewhere:
                elsewhere.append(known.head)
            file.parent.mkdir()
            (tmp_path / "elsewhere.db").rename(file)
            await until(lambda: reachable[-1])
            assert replica.head == known.head
            await until(lambda: read_snapshot(tmp_path / "snapshot.json") == StoreSnapshot(known.head, ()))
            await replica.close()

    asyncio.run(run())


def test_a_store_that_was_replaced_by_an_older_one_is_not_followed(tmp_path):
    file = tmp_path / "control.db"

    async def run():
        async with replica_of(f"sqlite:///{file}") as replica:
            await change(replica, default_beta=0.9)
            for name in tmp_path.iterdir():
                name.unlink()
            with contextlib.closing(RevisionStore(f"sqlite:///{file}")) as empty:
                assert empty.head() == REVISION_0
                await until(lambda: replica.reachable[-1] is False)
            assert replica.state.default_beta == 0.9

    asyncio.run(run())


def test_the_settings_are_in_force_without_a_token_file_and_the_file_is_copied_once_it_can_be(store_url, tmp_path):
    """The directory of the files is a file at first, so that nothing can be written there."""

    async def run():
        directory = tmp_path / "tokens"
        directory.write_text("in the way")
        async with replica_of(store_url) as one:
            content = b"a token file"
            sha256 = hashlib.sha256(content).hexdigest()
            after = SettingsState(tokens={"fog": sha256}, default_beta=0.9)
            await one.append(one.head, after, who="ada", action="set", reason="r", token_files={sha256: content})
            cache = TokenCache(directory)
            store = RevisionStore(store_url)
            other, seen = SettingsReplica(store, token_cache=cache), []
            await other.open()
            try:
                other.subscribe(lambda row: seen.append(row.revision))
                assert (other.state, other.unreachable_since) == (after, None)
                directory.unlink()
                await until(lambda: cache.has(sha256))
                await until(lambda: seen == [1, 1])  # the processes try the token again
            finally:
                await other.close()
                store.close()

    asyncio.run(run())


def test_a_rollback_copies_the_token_files_that_this_server_never_had(store_url, tmp_path):
    async def run():
        async with replica_of(store_url) as one:
            content = b"a token file"
            sha256 = hashlib.sha256(content).hexdigest()
            after = SettingsState(tokens={"fog": sha256})
            await one.append(one.head, after, who="ada", action="set", reason="r", token_files={sha256: content})
            await one.append(one.head, SettingsState(), who="ada", action="remove", reason="r")
        cache, store = TokenCache(tmp_path / "tokens"), RevisionStore(store_url)
        other = SettingsReplica(store, token_cache=cache)
        await other.open()
        try:
            assert not cache.has(sha256)
            await other.append(other.head, after, who="ada", action="rollback to 1", reason="r")
            assert cache.has(sha256)
        finally:
            await other.close()
            store.close()

    asyncio.run(run())


def test_a_change_by_another_process_is_seen_soon_on_sqlite(tmp_path):
    url = f"sqlite:///{tmp_path / 'control.db'}"

    async def run():
        async with replica_of(url) as one, replica_of(url) as other:
            took = []
            for n in range(10):
                began = time.monotonic()
                await change(one, default_beta=n / 10)
                await until(lambda n=n: other.head.revision == n + 1)
                took.append(time.monotonic() - began)
            print(f"longest {max(took):.3f} s")

    asyncio.run(run())


def test_a_row_of_a_newer_version_is_reported_and_the_known_settings_stay(store_url):
    async def run():
        async with replica_of(store_url) as replica:
            await change(replica, default_beta=0.7)
            unknown = replace(replica.head, revision=2, after='{"default_beta": 0.1, "of_a_newer_version": 1}')
            with replica.store.writing() as connection:
                values = ", ".join(f":{name}" for name in vars(unknown))
                connection.execute(sa.text(f"INSERT INTO tureen_revisions VALUES ({values})"), vars(unknown))
            await until(lambda: replica.reachable[-1] is False)
            with pytest.raises(ControlStoreError, match="newer"):
                replica.raise_if_unreachable()
            with replica.store.writing() as connection:
                connection.execute(sa.text("DELETE FROM tureen_revisions WHERE revision = 2"))
            await until(lambda: replica.reachable[-1] is True)
            assert replica.state.default_beta == 0.7

    asyncio.run(run())


def test_a_due_change_that_cannot_be_written_is_an_alarm_until_it_can(store_url, monkeypatch):
    tried = []

    def full(row, token_files):
        tried.append(row)
        raise ControlStoreError("the disk is full")

    async def run():
        async with replica_of(store_url) as replica:
            await change(replica, default_beta=0.9, ttl_s=1)
            with monkeypatch.context() as patch:
                patch.setattr(replica.store, "append", full)
                await until(lambda: len(tried) >= 2)
                await replica.refresh()
                assert replica.reachable[-1] is False
            await until(lambda: replica.reachable[-1] is True)
            assert replica.state.default_beta is None

    asyncio.run(run())


def test_a_due_change_on_a_stale_store_is_retried_with_pauses(tmp_path, monkeypatch):
    tried = []

    def stale(row, token_files):
        tried.append(row)
        raise StaleRevisionError(row.revision - 2)

    async def run():
        async with replica_of(f"sqlite:///{tmp_path / 'control.db'}") as replica:
            await change(replica, default_beta=0.9, ttl_s=1)
            monkeypatch.setattr(replica.store, "append", stale)
            await until(lambda: tried)
            await asyncio.sleep(0.5)
            assert len(tried) <= 2

    asyncio.run(run())
