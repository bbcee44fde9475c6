"""One of several server processes: does what its supervisor says.

`serve.processes.worker_start` starts it, and ends it when the supervisor has ended.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path

from serve.processes.messages import (
    Accept,
    Drain,
    Heartbeat,
    Ready,
    Reload,
    ReloadResult,
    ServedModel,
    SettingsApplied,
    SettingsUpdate,
    WorkerChannel,
    WorkerConfig,
    read_worker_config,
)
from serve.processes.server_process import ServerProcess
from serve.telemetry.logs import configure_logs
from serve.telemetry.metrics import Metrics, share_metrics
from tureen.bundle.bundle import load_bundle
from tureen.errors import TureenError

logger = logging.getLogger("tureen.serve")


class Worker(ServerProcess):
    """A server process that accepts, drains and reloads as it is told, and by no signal."""

    handles_signals = False
    shares_ports = True

    def __init__(self, orders: WorkerConfig, end: socket.socket) -> None:
        listeners = [socket.socket(fileno=descriptor) for descriptor in orders.listeners]
        bundle = load_bundle(orders.settings.bundle)
        super().__init__(orders.settings, bundle, listeners, Metrics(Path(orders.metrics)))
        self._end = end
        self._line: WorkerChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if orders.control is not None:
            self._follow(orders.control)

    async def begin(self) -> None:
        # A copy: the original stays open to this process' last moment, so that its end tells the process' end.
        self._line = await WorkerChannel.on(self._end.dup())
        self._start_task(self._obey(self._line))

    def become_ready(self) -> None:
        self._say(ServedModel(manifest=self.service.bundle.manifest))
        self._say(Ready())

    async def _obey(self, line: WorkerChannel) -> None:
        async for message in line.messages():
            match message:
                case Accept():
                    await self.server.accept_from(message.listeners)
                case SettingsUpdate():
                    self._follow(message)
                    self._say(SettingsApplied(revision=message.revision))
                case Reload():
                    self._start_task(self._reload())
                case Heartbeat():
                    self._say(message)
                case Drain():
                    self.server.drain()

    def _follow(self, control: SettingsUpdate) -> None:
        self.service.apply_settings(control.revision, control.state)
        self.service.metrics.control_reachable.set(control.is_reachable)

    async def _reload(self) -> None:
        is_reloaded = await self.reload()
        self._say(ServedModel(manifest=self.service.bundle.manifest))
        self._say(ReloadResult(ok=is_reloaded))

    def _say(self, message: SettingsApplied | Heartbeat | Ready | ReloadResult | ServedModel) -> None:
        assert self._line is not None
        self._line.say(message)

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)


def main(descriptor: int) -> int:
    """Serve as the supervisor says; returns the exit status."""
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A terminal or a service manager may send these to every process; the supervisor tells what they mean here.
        signal.signal(signal_number, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    try:
        orders = read_worker_config(end)
        configure_logs(orders.settings.log_level, worker=orders.worker)
        share_metrics(Path(orders.metrics), orders.worker)
        return Worker(orders, end).run()
    except EOFError as error:
        print(f"tureen serve: {error}", file=sys.stderr)
    except TureenError as error:  # such as of a bundle that was replaced by a broken one
        logger.error("%s", error)
    return 1
