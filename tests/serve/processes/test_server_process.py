"""One server process opens its parts in order, closes them in reverse, and keeps its bundle if a reload fails."""

import asyncio
import dataclasses
import socket

import pytest

from serve.processes.server_process import ServerProcess, open_tracing
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


class RecordedProcess(ServerProcess):
    """A process that keeps the names of its steps, and drains when it is ready."""

    handles_signals = False

    def __init__(self, bundle, metrics=None, **changes):
        settings = Settings(
            bundle=bundle.path, engine="onnxruntime", threads=1, max_batch=1, drain_delay_s=0, **changes
        )
        super().__init__(settings, bundle, [], metrics or Metrics())
        self.steps = []

    async def begin(self):
        self.steps.append(f"begin, ready: {self.service.is_ready}")

    def become_ready(self):
        self.steps.append(f"ready: {self.service.is_ready}")
        self.server.drain(skip_delay=True)

    async def end(self):
        self.steps.append(f"end, ready: {self.service.is_ready}")


@pytest.fixture
def bundle():
    return load_bundle(EXAMPLES / "cifar10")


def reloads(process):
    return {outcome: process.service.metrics.reloads.labels(outcome)._value.get() for outcome in ("ok", "failed")}


def test_a_process_is_ready_when_its_engine_is_open_and_ends_with_0(bundle):
    process = RecordedProcess(bundle)
    assert process.run() == 0
    assert process.steps == ["begin, ready: False", "ready: True", "end, ready: False"]


def test_a_process_counts_its_start(bundle):
    metrics = Metrics()
    RecordedProcess(bundle, metrics)
    RecordedProcess(bundle, metrics)
    assert b"\ntureen_process_starts_total 2.0\n" in metrics.render()[0]


def test_a_process_whose_engine_is_wrong_never_becomes_ready_and_ends_with_1(bundle, caplog):
    golden = dataclasses.replace(bundle.golden, logits=bundle.golden.logits + 1)
    process = RecordedProcess(dataclasses.replace(bundle, golden=golden))
    assert process.run() == 1
    assert process.steps == ["begin, ready: False", "end, ready: False"]
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "does not reproduce the golden rows" in error.message
    assert error.exc_info is None


def test_a_process_whose_grpc_port_is_taken_ends_with_1_and_names_it(bundle, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = RecordedProcess(bundle, grpc_port=port)
        assert process.run() == 1
    assert process.steps == ["begin, ready: False", "end, ready: False"]
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"127.0.0.1:{port}" in error.message


def test_a_reload_replaces_the_bundle_and_a_failed_one_keeps_it(bundle, example_bundle, caplog):
    async def run():
        process = RecordedProcess(load_bundle(example_bundle))
        await process.service.open()
        before = process.service.bundle
        assert await process.reload()
        reloaded = process.service.bundle
        assert reloaded is not before
        (example_bundle / "manifest.json").unlink()
        assert not await process.reload()
        assert process.service.bundle is reloaded
        assert reloads(process) == {"ok": 1, "failed": 1}
        await process.service.close()

    asyncio.run(run())
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.message.startswith("reload failed, ")
    assert error.exc_info is None  # an error of ours has its reason in the message


def test_a_reload_before_the_first_engine_is_open_fails_and_is_counted(bundle):
    process = RecordedProcess(bundle)
    assert not asyncio.run(process.reload())
    assert reloads(process) == {"ok": 0, "failed": 1}


def test_without_an_endpoint_there_is_no_tracing():
    assert open_tracing(None) is None
