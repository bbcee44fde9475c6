"""The server in one process: signals, and the operators' listener beside the public one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from serve.admin.operations import AdminOperations
from serve.control.revision_store import Revision
from serve.control.worker_state import WorkerState
from serve.processes.server_process import ServerProcess
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import Bundle
from tureen.errors import TureenError

if TYPE_CHECKING:
    pass

logger = logging.getLogger("tureen.serve")


class SingleProcess(ServerProcess):
    """A server in one process: SIGTERM and SIGINT drain it, SIGHUP reloads the bundle."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        listeners: Sequence[socket.socket],
        on_ready: Callable[[], None],
        admin: socket.socket,
    ) -> None:
        metrics = Metrics()
        super().__init__(settings, bundle, listeners, metrics)
        self._on_ready = on_ready
        self._desk = AdminOperations(settings, bundle, admin, metrics)
        self._is_operated = False
        self._reload: asyncio.Task[bool] | None = None

    async def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            await self._desk.open(self._follow, self._states)
        except TureenError as error:
            logger.error("%s", error)
            self._has_failed = True
            self.server.drain(skip_delay=True)
            return
        self._is_operated = True
        await self.server.accept_from({0})

    def become_ready(self) -> None:
        self._on_ready()

    def run(self) -> int:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            # Before uvicorn's handlers and after them: neither an early nor a late signal is another end than draining.
            signal.signal(signal_number, self.server.handle_exit)
        status = super().run()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, signal.SIG_IGN)  # a second one must not turn a clean exit into a crash
        return status

    async def reload(self) -> bool:
        is_reloaded = await super().reload()
        self._desk.shows(self.service.bundle.manifest)
        return is_reloaded

    async def end(self) -> None:
        if self._is_operated:
            await self._desk.close()

    def _follow(self, row: Revision, is_reachable: bool) -> None:
        self.service.apply_settings(row.revision, row.state)
        self.service.metrics.control_reachable.set(is_reachable)

    def _states(self) -> list[WorkerState]:
        manifest = self.service.bundle.manifest
        model = f"{manifest.name} {manifest.version}"
        return [WorkerState(0, os.getpid(), self.service.is_ready, self.service.active_settings.revision, model)]

    def _reload_soon(self) -> None:
        self._reload = asyncio.get_running_loop().create_task(self.reload())
