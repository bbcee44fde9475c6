"""Runs one worker process of a server. The worker serves the bundle, and obeys the messages of the supervisor.

`serve.processes.worker_start` starts the worker, and ends it when the supervisor has ended.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from pathlib import Path

from serve.processes.messages import (
    Accept,
    CheckToken,
    Drain,
    Heartbeat,
    Ready,
    Reload,
    ReloadResult,
    ServingModel,
    SettingsApplied,
    SettingsUpdate,
    TokenChecked,
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
    """A server process that obeys the messages of the supervisor. It ignores SIGTERM, SIGINT and SIGHUP."""

    handles_signals = False
    shares_ports = True

    def __init__(self, config: WorkerConfig, end: socket.socket) -> None:
        listeners = [socket.socket(fileno=descriptor) for descriptor in config.listeners]
        bundle = load_bundle(config.settings.bundle)
        super().__init__(config.settings, bundle, listeners, Metrics(Path(config.metrics)))
        self._end = end
        self._channel: WorkerChannel | None = None
        self.service.withhold_ready()  # until no worker that is not ready accepts connections
        if config.control is not None:
            self._apply_settings(config.control)

    async def begin(self) -> None:
        # A copy. The original stays open until the process ends, so the supervisor detects that end by its closing.
        self._channel = await WorkerChannel.connect(self._end.dup())
        self.start_task(self._follow_supervisor(self._channel))

    def become_ready(self) -> None:
        self._send_model()
        self._send_applied()
        self._send(Ready())

    async def _follow_supervisor(self, channel: WorkerChannel) -> None:
        async for message in channel.messages():
            match message:
                case Accept():
                    await self.server.accept_from(message.listeners)
                    if message.reports_ready:
                        self.service.report_ready()
                case SettingsUpdate():
                    self._apply_settings(message)
                    if self.service.applied_revision >= message.revision:
                        self._send_applied()
                    else:  # it takes time, and the next message must not wait
                        self.start_task(self._load_tokens())
                case CheckToken():
                    self.start_task(self._check_token(message.sha256))
                case Reload():
                    self.start_task(self._reload(message.bundle))
                case Heartbeat():
                    self._send(message)
                case Drain():
                    self.server.drain()

    def _apply_settings(self, update: SettingsUpdate) -> None:
        self.service.apply_settings(update.revision, update.state)
        self.service.metrics.control_reachable.set(update.is_reachable)

    async def _load_tokens(self) -> None:
        await self.service.load_tokens()
        self._send_applied()

    def _send_model(self) -> None:
        self._send(ServingModel(manifest=self.service.bundle.manifest, own_tokens=self.service.own_tokens))

    def _send_applied(self) -> None:
        parked = dict(self.service.parked_tokens)
        self._send(SettingsApplied(revision=self.service.applied_revision, parked_tokens=parked))

    async def _check_token(self, sha256: str) -> None:
        try:
            await self.service.check_token(sha256)
            error = None
        except TureenError as refusal:
            error = str(refusal)
        self._send(TokenChecked(sha256=sha256, error=error))

    async def _reload(self, bundle: Path) -> None:
        is_reloaded = await self.reload(bundle)
        self._send_model()
        self._send_applied()
        self._send(ReloadResult(ok=is_reloaded))

    def _send(self, message: SettingsApplied | TokenChecked | Heartbeat | Ready | ReloadResult | ServingModel) -> None:
        assert self._channel is not None
        self._channel.send(message)


def main(descriptor: int) -> int:
    """Runs a worker until it has drained, and returns the exit status: 0, or 1 if it could not serve.

    descriptor: file descriptor of the socket to the supervisor.
    """
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A terminal or a service manager may send these to every process. The supervisor acts on them.
        signal.signal(signal_number, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    try:
        config = read_worker_config(end)
        configure_logs(config.settings.log_level, worker=config.worker)
        share_metrics(Path(config.metrics), config.worker)
        return Worker(config, end).run()
    except EOFError as error:
        print(f"tureen serve: {error}", file=sys.stderr)
    except TureenError as error:  # for example, the bundle was replaced by a broken one
        logger.error("%s", error)
    return 1
