"""The responses with the operator's settings, and the header without which nothing is changed."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from starlette.requests import Request

from serve.admin.settings_writes import public_settings, settings_response, write_settings
from serve.control.credential_store import Credential
from serve.control.settings_state import KeyPolicy, SettingsState
from serve.errors import IfMatchRequiredError, StaleRevisionError
from tests.serve.admin.opened import Workers, opened

ADA = Credential("ada", "operate", "", "")


def request(*if_match):
    headers = [(b"if-match", value.encode()) for value in if_match]
    return Request({"type": "http", "method": "PUT", "path": "/", "query_string": b"", "headers": headers})


def change(state):
    return state.model_copy(update={"default_beta": 0.5})


def test_the_public_settings_have_neither_hashes_of_keys_nor_tokens():
    state = SettingsState(
        policies={"ada": 0.5}, api_keys={"0" * 64: KeyPolicy(name="ada", policy="ada")}, tokens={"fog": "f" * 64}
    )
    public = public_settings(state)
    assert (public["keys"], public["tokens"]) == ([{"name": "ada", "policy": "ada"}], 1)
    assert "0" * 64 not in json.dumps(public)
    assert "f" * 64 not in json.dumps(public)


@pytest.mark.parametrize(
    ("if_match", "error"),
    [
        ((), IfMatchRequiredError),
        (("0",), IfMatchRequiredError),
        (("*",), IfMatchRequiredError),
        (('W/"0"',), IfMatchRequiredError),
        (('"1"',), StaleRevisionError),
    ],
)
def test_a_change_for_no_revision_or_another_is_refused(tmp_path, if_match, error):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            with pytest.raises(error):
                await write_settings(operations, request(*if_match), ADA, "set", "a test", change)
            assert operations.replica.head.revision == 0

    asyncio.run(run())


def test_a_response_has_the_revision_as_its_etag_and_a_dry_run_changes_nothing(tmp_path):
    async def run():
        async with opened(tmp_path, Workers(count=0)) as operations:
            dry = await write_settings(operations, request('"0"'), ADA, "set", "a test", change, dry_run=True)
            assert (dry.headers["etag"], json.loads(dry.body)["default_beta"]) == ('"0"', 0.5)
            assert operations.replica.head.revision == 0
            made = await write_settings(operations, request('"0"'), ADA, "set", "a test", change)
            assert made.headers["etag"] == '"1"'
            changed = json.loads(settings_response(operations, operations.replica.head).body)["changed"]
            assert (changed["who"], changed["action"], changed["reason"]) == ("ada", "set", "a test")
            assert datetime.fromisoformat(changed["at"]) <= datetime.now(UTC)

    asyncio.run(run())
