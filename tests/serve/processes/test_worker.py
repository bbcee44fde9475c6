"""A worker follows the messages of its supervisor, and says what it has done. The test is the supervisor."""

import asyncio
import contextlib
import signal
import socket

import pytest

from serve.control.settings_state import SettingsState
from serve.processes.messages import (
    Accept,
    Drain,
    Heartbeat,
    Ready,
    Reload,
    ReloadResult,
    ServingModel,
    SettingsApplied,
    SettingsUpdate,
    WorkerChannel,
    WorkerConfig,
)
from serve.processes.worker import Worker, main
from serve.settings import Settings
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

MANIFEST = load_bundle(EXAMPLES / "cifar10").manifest
UPDATE = SettingsUpdate(revision=4, state=SettingsState(default_beta=0.25), is_reachable=False)


class Supervisor:
    """The other end of the channel of a worker."""

    def __init__(self, channel):
        self.send = channel.send
        self._messages = channel.messages()

    async def receive(self):
        return await asyncio.wait_for(anext(self._messages), DEADLINE_S)


@contextlib.asynccontextmanager
async def begun(tmp_path, *listeners, control=None):
    """A worker that follows its supervisor, and whose engine is not open; with its supervisor."""
    ours, theirs = socket.socketpair()
    with theirs:
        config = WorkerConfig(
            worker=1,
            settings=Settings(
                bundle=EXAMPLES / "cifar10", engine="onnxruntime", threads=1, max_batch=1, drain_delay_s=0
            ),
            listeners=[listener.fileno() for listener in listeners],
            metrics=str(tmp_path),
            control=control,
        )
        worker = Worker(config, theirs)
        await worker.begin()
        channel = await WorkerChannel.connect(ours)
        try:
            yield worker, Supervisor(channel)
        finally:
            channel.close()
            worker._channel.close()  # which a process leaves open until it ends


def test_a_heartbeat_returns(tmp_path):
    async def run():
        async with begun(tmp_path) as (_, supervisor):
            supervisor.send(Heartbeat())
            assert await supervisor.receive() == Heartbeat()

    asyncio.run(run())


def test_settings_are_in_force_before_the_worker_says_so(tmp_path):
    async def run():
        async with begun(tmp_path) as (worker, supervisor):
            supervisor.send(UPDATE)
            assert await supervisor.receive() == SettingsApplied(revision=4)
            assert worker.service.active_settings.default.beta == 0.25
            assert worker.service.metrics.control_reachable._value.get() == 0

    asyncio.run(run())


def test_a_worker_starts_with_the_settings_of_its_configuration(tmp_path):
    async def run():
        async with begun(tmp_path, control=UPDATE) as (worker, _):
            assert worker.service.active_settings.revision == 4

    asyncio.run(run())


def test_a_worker_listens_where_the_supervisor_says_so_and_nowhere_before(tmp_path):
    async def run():
        sockets = [socket.socket() for _ in range(2)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        async with begun(tmp_path, *sockets) as (worker, supervisor):
            for numbers, listening in ((set(), [0, 0]), ({1}, [0, 1]), ({0, 1}, [1, 1])):
                supervisor.send(Accept(listeners=numbers))
                supervisor.send(Heartbeat())
                await supervisor.receive()
                assert [bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for bound in sockets] == listening
            await worker.server.accept_from(set())
        for bound in sockets:
            bound.detach()  # the worker has adopted its descriptor

    asyncio.run(run())


def test_a_worker_is_ready_for_clients_when_the_supervisor_says_so(tmp_path):
    async def run():
        async with begun(tmp_path) as (worker, supervisor):
            await worker.service.open()
            for reports_ready in (False, True):
                assert not worker.service.is_ready
                assert worker.service.metrics.is_ready._value.get() == 0
                supervisor.send(Accept(listeners=set(), reports_ready=reports_ready))
                supervisor.send(Heartbeat())
                await supervisor.receive()
            assert worker.service.is_ready
            assert worker.service.metrics.is_ready._value.get() == 1
            await worker.service.close()

    asyncio.run(run())


def test_a_worker_drains_when_the_supervisor_says_so_and_no_signal_does(tmp_path):
    async def run():
        handler = signal.getsignal(signal.SIGTERM)
        async with begun(tmp_path) as (worker, supervisor):
            assert not worker.server.should_exit
            with worker.server.capture_signals():
                assert signal.getsignal(signal.SIGTERM) is handler
            supervisor.send(Drain())
            supervisor.send(Heartbeat())
            await supervisor.receive()
            assert worker.server.should_exit

    asyncio.run(run())


def test_a_ready_worker_sends_its_model_first(tmp_path):
    async def run():
        async with begun(tmp_path) as (worker, supervisor):
            worker.become_ready()
            assert await supervisor.receive() == ServingModel(manifest=MANIFEST)
            assert await supervisor.receive() == SettingsApplied(revision=0)
            assert await supervisor.receive() == Ready()

    asyncio.run(run())


@pytest.mark.parametrize("is_open", [True, False])
def test_the_result_of_a_reload_follows_the_model_that_is_served(tmp_path, is_open):
    async def run():
        async with begun(tmp_path) as (worker, supervisor):
            if is_open:
                await worker.service.open()
            supervisor.send(Reload(bundle=EXAMPLES / "cifar10"))
            own_tokens = ["clean", "robust"] if is_open else []
            assert await supervisor.receive() == ServingModel(manifest=MANIFEST, own_tokens=own_tokens)
            assert await supervisor.receive() == SettingsApplied(revision=0)
            assert await supervisor.receive() == ReloadResult(ok=is_open)
            await worker.service.close()

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the socket stays open until the process ends
def test_a_worker_whose_supervisor_ends_before_the_configuration_exits_with_1(capsys):
    ours, theirs = socket.socketpair()
    ours.close()
    assert main(theirs.detach()) == 1
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert {signal.getsignal(number) for number in signals} == {signal.SIG_IGN}
    said = capsys.readouterr().err
    assert said == "tureen serve: the supervisor ended before it sent the configuration of the worker\n"
