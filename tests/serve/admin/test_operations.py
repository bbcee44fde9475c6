"""The operations of the operators' listener without a server: changes, acknowledgements, credentials."""

import asyncio

import pytest

from serve.control.credential_store import Credentials
from serve.control.settings_state import SettingsState
from serve.control.state_directory import TOKEN_FILE
from serve.errors import AdminListenerError
from tests.patience import DEADLINE_S
from tests.serve.admin.opened import Workers, opened


async def change(operations, beta):
    head = operations.replica.head
    return await operations.replica.append(
        head, SettingsState(default_beta=beta), who="ada", action="set", reason="a test"
    )


def test_a_default_that_the_bounds_moved_has_the_source_that_responses_give(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            beyond = operations.default_beta(SettingsState()) + 0.1
            state = SettingsState(beta_min=beyond)
            assert operations.default_beta(state) == beyond
            assert operations.default_beta_source(state) == "operator"

    asyncio.run(run())


def test_a_change_reaches_the_workers_and_is_in_force(tmp_path):
    async def run():
        workers = Workers()
        async with opened(tmp_path, workers) as operations:
            assert operations.default_beta_source(operations.replica.state) == "bundle"
            row = await change(operations, 0.7)
            assert workers.sent[-1] == (row.revision, True)
            assert operations.default_beta(operations.replica.state) == 0.7
            assert operations.default_beta_source(operations.replica.state) == "operator"
            assert operations.current_settings().choose(None).beta == 0.7

    asyncio.run(run())


@pytest.mark.parametrize("last", [{"revision": 1}, {"is_ready": False}], ids=["applies it", "is no longer ready"])
def test_a_change_is_acknowledged_once_no_ready_worker_is_behind(tmp_path, last):
    async def run():
        workers = Workers()
        async with opened(tmp_path, workers) as operations:
            row = await change(operations, 0.7)
            waiting = asyncio.create_task(operations.wait_until_applied(row.revision))
            for state in ({}, {"revision": 1}):
                workers.set(0, **state)
                operations.notify_workers_changed()
                await asyncio.sleep(0)
                assert not waiting.done()
            workers.set(1, **last)
            operations.notify_workers_changed()
            await asyncio.sleep(0)  # the event wakes the task, and nothing else does
            await asyncio.sleep(0)
            assert waiting.done()

    asyncio.run(run())


def test_a_worker_that_applies_nothing_holds_an_operator_up_for_a_limited_time(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            row = await change(operations, 0.7)
            waiting = asyncio.create_task(operations.wait_until_applied(row.revision))
            await asyncio.wait([waiting], timeout=DEADLINE_S)
            assert waiting.done()

    asyncio.run(run())


def test_the_first_server_makes_a_credential_whose_token_is_in_the_state_directory(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            secret = (tmp_path / "state" / TOKEN_FILE).read_text().strip()
            found = await operations.find_credential(secret)
            assert (found.name, found.may_operate) == ("local", True)
            assert await operations.find_credential("wrong") is None

    asyncio.run(run())


def test_a_listener_that_other_machines_reach_opens_only_with_a_credential_for_them(tmp_path):
    async def run():
        with pytest.raises(AdminListenerError, match="no credential was made"):
            async with opened(tmp_path, Workers(), admin_host="0.0.0.0"):
                pass
        async with opened(tmp_path, Workers()) as operations:
            ada = Credentials(operations.store).make("ada", "read")
        async with opened(tmp_path, Workers(), admin_host="0.0.0.0") as operations:
            assert (await operations.find_credential(ada)).name == "ada"

    asyncio.run(run())
