"""Changes of a store by another process are noticed."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from serve.control import notifications
from serve.control.notifications import store_changes
from serve.control.revision_store import RevisionStore, next_revision
from serve.control.settings_state import SettingsState
from tests.patience import DEADLINE_S


def test_a_change_of_another_connection_is_noticed_before_the_next_regular_signal(store, store_url):
    async def run():
        with contextlib.closing(RevisionStore(store_url)) as other:
            head = store.head()
            async with contextlib.aclosing(store_changes(store, max_interval_s=10 * DEADLINE_S)) as changes:
                await asyncio.wait_for(anext(changes), DEADLINE_S)
                row = next_revision(head, SettingsState(), at=datetime.now(UTC), who="a", action="set", reason="r")
                await asyncio.to_thread(other.append, row)
                await asyncio.wait_for(anext(changes), DEADLINE_S)
                assert store.head() == row

    asyncio.run(run())


def test_a_store_that_is_missing_gives_a_signal_all_the_same(tmp_path):
    async def run():
        with contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'missing' / 'control.db'}")) as store:
            async with contextlib.aclosing(store_changes(store, max_interval_s=0)) as changes:
                for _ in range(2):
                    await asyncio.wait_for(anext(changes), DEADLINE_S)
        assert list(tmp_path.iterdir()) == []

    asyncio.run(run())


def test_a_counter_is_not_closed_during_a_read(tmp_path):
    """As when a server ends while its thread reads: SQLite would crash the process."""
    file = tmp_path / "control.db"
    with contextlib.closing(RevisionStore(f"sqlite:///{file}")) as store:
        store.head()
        for _ in range(300):
            counter = notifications._CommitCounter(file)
            with ThreadPoolExecutor(2) as threads:
                reads = [threads.submit(counter.read) for _ in range(4)]
                counter.close()
                assert all(isinstance(read.result(), int) for read in reads)
