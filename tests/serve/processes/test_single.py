"""A server in one process: its operators' listener, its settings and its signals."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest

from serve.control.revision_store import Revision
from serve.control.settings_state import SettingsState
from serve.errors import AdminListenerError
from serve.processes.single import SingleProcess
from serve.settings import Settings
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


class FakeAdmin:
    """An operators' listener that keeps what it gets. error: raised when it is opened."""

    def __init__(self, error=None):
        self.error = error
        self.models, self.is_closed = [], False
        self.model_shown = asyncio.Event()

    async def open(self, metrics, *, apply, workers, check_token):
        if self.error is not None:
            raise self.error
        self.metrics, self.apply, self.workers = metrics, apply, workers
        return self

    def show_model(self, manifest):
        self.models.append(manifest.version)
        self.model_shown.set()

    def notify_workers_changed(self):
        pass

    async def close(self):
        self.is_closed = True


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def single(admin, listener, on_ready=lambda: None):
    bundle = load_bundle(EXAMPLES / "cifar10")
    settings = Settings(bundle=bundle.path, engine="onnxruntime", threads=1, max_batch=1, drain_delay_s=0)
    return SingleProcess(settings, bundle, [listener], on_ready, admin.open)


def test_sigterm_ends_a_ready_process_with_0_and_closes_its_listener(listener):
    admin, ready = FakeAdmin(), []

    def on_ready():
        ready.append(process.service.is_ready)
        os.kill(os.getpid(), signal.SIGTERM)

    process = single(admin, listener, on_ready)
    assert process.run() == 0
    assert ready == [True]
    assert admin.is_closed
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [signal.SIG_IGN] * 2


def test_a_process_whose_operators_listener_does_not_open_ends_with_1_and_the_reason(listener, caplog):
    ready = []
    process = single(FakeAdmin(AdminListenerError("the reason")), listener, lambda: ready.append(True))
    assert process.run() == 1
    assert not ready  # it opened no engine
    assert "the reason" in [record.message for record in caplog.records]


def revision(state):
    return Revision(4, "", "ada", "set", "a test", "{}", state.model_dump_json(), "", "")


@contextlib.asynccontextmanager
async def begun(admin, listener):
    """A process whose listener is open and whose engine is not."""
    process = single(admin, listener)
    await process.begin()
    try:
        yield process
    finally:
        await process.server.accept_from(set())
        await process.end()


def test_the_listener_sees_one_worker_with_the_settings_that_it_applies(listener):
    async def run():
        admin = FakeAdmin()
        async with begun(admin, listener) as process:
            manifest = process.service.bundle.manifest
            (worker,) = admin.workers()
            assert (worker.worker, worker.pid, worker.is_ready, worker.revision) == (0, os.getpid(), False, 0)
            assert worker.model == f"{manifest.name} {manifest.version}"
            admin.apply(revision(SettingsState(default_beta=0.25)), False)
            assert admin.workers()[0].revision == 4
            assert process.service.active_settings.default.beta == 0.25
            assert b"\ntureen_control_store_reachable 0.0\n" in admin.metrics.render()[0]
            admin.apply(revision(SettingsState()), True)
            assert b"\ntureen_control_store_reachable 1.0\n" in admin.metrics.render()[0]
        assert admin.is_closed

    asyncio.run(run())


def test_sighup_reloads_the_bundle_and_shows_operators_the_model_that_is_served(listener):
    async def run():
        admin = FakeAdmin()
        async with begun(admin, listener) as process:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(admin.model_shown.wait(), DEADLINE_S)
            assert admin.models == [process.service.bundle.manifest.version]
            # The engine is not open, so the reload fails. Operators see the model that is served in any case.
            assert process.service.metrics.reloads.labels("failed")._value.get() == 1

    asyncio.run(run())
