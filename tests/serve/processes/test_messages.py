"""The messages between supervisor and worker arrive whole, however long they are."""

import asyncio
import json
import socket

import pytest

from serve.control.settings_state import MAX_KEYS, KeyPolicy, SettingsState
from serve.processes.messages import (
    Accept,
    Heartbeat,
    ReloadResult,
    ServingModel,
    SettingsUpdate,
    WorkerChannel,
    WorkerConfig,
    read_worker_config,
)
from serve.settings import Settings
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


def test_a_message_of_many_labels_or_keys_comes_through_the_channel_whole():
    keys = {f"{n:064}": KeyPolicy(name=f"{n:063}", policy="p" * 63) for n in range(MAX_KEYS)}
    control = SettingsUpdate(
        revision=1, state=SettingsState(policies={"p" * 63: 0.5}, api_keys=keys), is_reachable=True
    )
    manifest = load_bundle(EXAMPLES / "cifar10").manifest
    serves = ServingModel(manifest=manifest.model_copy(update={"labels": [f"label {n}" for n in range(100_000)]}))

    async def pass_on():
        ours, theirs = socket.socketpair()
        sender, receiver = await WorkerChannel.connect(ours), await WorkerChannel.connect(theirs)
        for message in (control, serves):
            sender.send(message)
        messages = receiver.messages()
        received = [await anext(messages) for _ in range(2)]
        sender.close()
        receiver.close()
        return received

    assert asyncio.run(pass_on()) == [control, serves]


def test_the_configuration_of_a_worker_comes_through_the_channel_whole():
    ours, theirs = socket.socketpair()
    config = WorkerConfig(
        worker=1,
        settings=Settings(bundle=EXAMPLES / "cifar10", default_beta=0.25),
        listeners=[5, 6],
        metrics="/somewhere",
    )
    with ours, theirs:
        following = Accept(listeners={1}).model_dump_json().encode()
        ours.sendall(config.model_dump_json().encode() + b"\n" + following)
        assert read_worker_config(theirs) == config
        assert Accept.model_validate_json(theirs.recv(1000)) == Accept(listeners={1})
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            read_worker_config(theirs)
    assert json.loads(ReloadResult(ok=False).model_dump_json()) == {"kind": "reloaded", "ok": False}


def test_messages_end_when_the_other_process_ends_and_later_ones_are_dropped():
    async def run():
        ours, theirs = socket.socketpair()
        channel, other = await WorkerChannel.connect(ours), await WorkerChannel.connect(theirs)
        other.send(Heartbeat())
        other.close()
        assert [message async for message in channel.messages()] == [Heartbeat()]
        channel.close()
        channel.send(Heartbeat())  # raises nothing

    asyncio.run(run())
