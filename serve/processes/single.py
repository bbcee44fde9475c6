"""Runs a server in one process, with the public listener, the operators' listener and the handling of signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.control.revision_store import Revision
from serve.control.worker_state import AdminServer, OpenAdminServer, WorkerState
from serve.processes.server_process import ServerProcess
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import Bundle
from tureen.errors import TureenError

logger = logging.getLogger("tureen.serve")


class SingleProcess(ServerProcess):
    """A server in one process. SIGTERM and SIGINT drain the server. SIGHUP reloads the bundle."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        listeners: Sequence[socket.socket],
        on_ready: Callable[[], None],
        open_admin: OpenAdminServer,
    ) -> None:
        metrics = Metrics()
        super().__init__(settings, bundle, listeners, metrics)
        self._on_ready = on_ready
        self._open_admin = open_admin
        self._admin: AdminServer | None = None
        self._reload: asyncio.Task[bool] | None = None

    async def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            self._admin = await self._open_admin(
                self.service.metrics,
                apply=self._apply_settings,
                workers=self._worker_states,
                check_token=self.service.check_token,
            )
        except TureenError as error:
            logger.error("%s", error)
            self._has_failed = True
            self.server.drain(skip_delay=True)
            return
        await self.server.accept_from({0})

    def become_ready(self) -> None:
        self._on_ready()

    def run(self) -> int:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            # This handler applies before uvicorn sets its handlers and after it restores them, so every signal drains.
            signal.signal(signal_number, self.server.handle_exit)
        status = super().run()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, signal.SIG_IGN)  # a second signal must not turn a clean exit into a crash
        return status

    async def reload(self, bundle: Path | None = None) -> bool:
        is_reloaded = await super().reload(bundle)
        if self._admin is not None:
            self._admin.show_model(self.service.bundle.manifest)
        return is_reloaded

    async def end(self) -> None:
        if self._admin is not None:
            await self._admin.close()

    def _apply_settings(self, row: Revision, is_reachable: bool) -> None:
        self.service.apply_settings(row.revision, row.state)
        self.service.metrics.control_reachable.set(is_reachable)
        if self.service.applied_revision != row.revision:
            self.start_task(self._load_tokens())

    async def _load_tokens(self) -> None:
        await self.service.load_tokens()
        if self._admin is not None:
            self._admin.notify_workers_changed()

    def _worker_states(self) -> list[WorkerState]:
        service, manifest = self.service, self.service.bundle.manifest
        model = f"{manifest.name} {manifest.version}"
        revision, parked, own = service.applied_revision, service.parked_tokens, service.own_tokens
        return [WorkerState(0, os.getpid(), service.is_ready, revision, model, parked, own)]

    def _reload_soon(self) -> None:
        self._reload = asyncio.get_running_loop().create_task(self.reload())
