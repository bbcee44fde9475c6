"""Runs the worker processes of one server: starts, restarts, reloads and drains them.

Knows nothing about HTTP, engines or images. The supervisor binds the listeners and accepts no connection. Each worker
accepts from its own listener. While a worker is not ready, the ready workers accept from its listener too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from prometheus_client.multiprocess import mark_process_dead

from serve.control.revision_store import Revision
from serve.control.worker_state import AdminServer, OpenAdminServer, WorkerState
from serve.errors import NotReadyError
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
)
from serve.settings import Settings
from serve.telemetry.logs import FIELDS
from serve.telemetry.metrics import SHARED_DIRECTORY, Metrics
from tureen.bundle.manifest import Manifest
from tureen.errors import TokenFileError, TureenError
from tureen.remote.locate import locate_bundle

DIVIDED = ("max_requests", "max_waiting_images", "max_body_memory", "max_decode_pixels", "max_decode_memory")
HEALTHY_AFTER_S = 10.0  # the death of a worker that was ready for this long is no failed start
MAX_RESTART_DELAY_S = 30.0
HEARTBEAT_S = 5.0
MAX_MISSED_HEARTBEATS = 6  # with more, the event loop of the worker is blocked
TOKEN_CHECK_TIMEOUT_S = 5.0
KILL_AFTER_S = 5.0  # after the drain delay and timeout

logger = logging.getLogger("tureen.supervisor")


def supervise(
    settings: Settings,
    bundle: Path,
    listeners: Sequence[socket.socket],
    on_ready: Callable[[], None],
    open_admin: OpenAdminServer,
) -> int:
    """Runs the workers until SIGTERM or SIGINT, then drains them and returns the exit status.

    The status is 1 if no worker became ready, or if a worker died or was killed while it drained; else 0. SIGHUP makes
    the workers reload the bundle, one after the other.
    bundle: directory of the bundle; `settings` may have its address instead. listeners: one for each worker. on_ready:
    called when the first worker is ready. open_admin: opens the operators' listener. Raises TureenError if that
    listener cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="tureen-metrics-") as metrics:
        return uvloop.run(Supervisor(settings, bundle, listeners, Path(metrics), on_ready, open_admin).run())


def worker_settings(settings: Settings) -> Settings:
    """Returns the settings of one worker: those of the server, with a share of the threads, permits and memory.

    All workers have the same settings.
    """
    threads = max(1, settings.threads // settings.workers)
    divided = {
        "workers": 1,
        "threads": threads,
        "streams": settings.streams and min(settings.streams, threads),
        "decode_threads": max(1, settings.decode_threads // settings.workers),
        "job_decode_processes": max(1, settings.job_decode_processes // settings.workers),
        **{name: -(-getattr(settings, name) // settings.workers) for name in DIVIDED},
    }
    return settings.model_copy(update=divided)


def restart_delay_s(early_deaths: int) -> float:
    """Returns how many seconds the supervisor waits before it restarts a worker that died.

    early_deaths: how many times in a row this worker died before it had been ready for HEALTHY_AFTER_S seconds.
    """
    return 0.0 if early_deaths <= 1 else min(MAX_RESTART_DELAY_S, 0.5 * 2 ** (early_deaths - 2))


@dataclass
class WorkerProcess:
    """A worker process, the channel to the process, and the state that its messages have reported."""

    number: int  # index of its listener
    process: subprocess.Popen[bytes]
    channel: WorkerChannel
    ready_s: float | None = None  # time.monotonic
    manifest: Manifest | None = None  # of the bundle that it serves
    own_tokens: list[str] = field(default_factory=list)  # names of its tokens that no operator added
    revision: int = 0  # of the operator's settings that it has applied
    parked_tokens: dict[str, str] = field(default_factory=dict)  # reasons by name of tokens that it cannot use
    token_checks: dict[str, asyncio.Future[str | None]] = field(default_factory=dict)  # results by SHA-256
    missed_heartbeats: int = 0  # since its last message
    reload_results: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)  # whether each reload succeeded

    @property
    def is_healthy(self) -> bool:
        return self.ready_s is not None and time.monotonic() - self.ready_s >= HEALTHY_AFTER_S


class Supervisor:
    """Starts, watches and stops the workers of one server. The number of a worker is the index of its listener."""

    def __init__(
        self,
        settings: Settings,
        bundle: Path,
        listeners: Sequence[socket.socket],
        metrics: Path,
        on_ready: Callable[[], None],
        open_admin: OpenAdminServer,
    ) -> None:
        self._settings = settings
        self._worker_settings = worker_settings(settings).model_copy(update={"bundle": bundle})
        self._listeners = listeners
        self._metrics = metrics
        self._on_ready = on_ready
        self._open_admin = open_admin
        self._admin: AdminServer | None = None
        self._settings_update: SettingsUpdate | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._was_ready = False
        self._failed_starts = 0
        self._has_failed = False
        self._stopping = asyncio.Event()
        self._reload_requested = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_requested.set)
        self._admin = await self._open_admin(
            Metrics(self._metrics),
            apply=self._apply_settings,
            workers=self._worker_states,
            check_token=self._check_token,
        )
        background = [asyncio.create_task(work) for work in (self._reload_on_request(), self._send_heartbeats())]
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(self._keep_running(number))
        for task in background:
            task.cancel()
        await self._admin.close()
        return int(self._has_failed)

    async def _keep_running(self, number: int) -> None:
        """Runs a worker with this number until the server stops. When the worker dies, starts another after a delay."""
        early_deaths = 0
        while not self._stopping.is_set():
            worker = await self._start(number)
            await self._read_messages(worker)
            status = worker.process.wait()  # does not block: the channel closes when the process ends
            worker.channel.close()
            del self._workers[number]
            mark_process_dead(number, str(self._metrics))  # type: ignore[no-untyped-call]
            self._worker_changed()
            if self._stopping.is_set():
                if status and worker.ready_s is not None:  # `_stop` kills a worker that was not ready
                    self._has_failed = True
                    _log(logging.ERROR, "worker died while it drained", worker, **_cause(status))
                return
            self._assign_listeners()
            early_deaths = 0 if worker.is_healthy else early_deaths + 1
            delay_s = restart_delay_s(early_deaths)
            _log(logging.ERROR, "worker died", worker, **_cause(status), restart_in_s=delay_s)
            if not self._was_ready:
                self._failed_starts += 1
                if self._failed_starts >= self._settings.workers:
                    self._stop_after_failed_starts()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()

    async def _start(self, number: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        listeners = [listener.fileno() for listener in self._listeners]
        with theirs:
            # Not a fork: this process has threads. The worker is a fresh interpreter.
            process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
                [sys.executable, "-P", "-m", "serve.processes.worker_start", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *listeners),
                env={**os.environ, SHARED_DIRECTORY: str(self._metrics)},
            )
        worker = WorkerProcess(number, process, await WorkerChannel.connect(ours))
        config = WorkerConfig(
            worker=number,
            settings=self._worker_settings,
            listeners=listeners,
            metrics=str(self._metrics),
            control=self._settings_update,
        )
        worker.revision = 0 if self._settings_update is None else self._settings_update.revision
        worker.channel.send(config)
        self._workers[number] = worker
        _log(logging.INFO, "worker started", worker)
        self._assign_listeners()
        if self._stopping.is_set():
            process.kill()
        return worker

    async def _read_messages(self, worker: WorkerProcess) -> None:
        async for message in worker.channel.messages():
            worker.missed_heartbeats = 0
            match message:
                case Ready():
                    worker.ready_s = time.monotonic()
                    self._assign_listeners()
                    if not self._was_ready:
                        self._was_ready = True
                        self._on_ready()
                    self._worker_changed()
                case ServingModel():
                    worker.manifest, worker.own_tokens = message.manifest, message.own_tokens
                    self._worker_changed()
                case SettingsApplied():
                    worker.revision, worker.parked_tokens = message.revision, message.parked_tokens
                    self._worker_changed()
                case TokenChecked():
                    worker.token_checks.pop(message.sha256).set_result(message.error)
                case ReloadResult():
                    worker.reload_results.put_nowait(message.ok)
        worker.reload_results.put_nowait(False)

    def _assign_listeners(self) -> None:
        """Sends each worker the listeners from which it must accept connections.

        A ready worker accepts from its own listener and from those of all workers that are not ready. While no worker
        is ready, each worker accepts from its own listener, and responds that it is not ready. The workers that must
        stop accepting get their message first, because clients send requests as soon as a worker reports that it is
        ready.
        """
        if self._stopping.is_set():
            return
        ready = {number for number, worker in self._workers.items() if worker.ready_s is not None}
        not_ready = set(range(self._settings.workers)) - ready
        for number, worker in sorted(self._workers.items(), key=lambda item: item[0] in ready):
            listeners: set[int] = set()
            if not ready:
                listeners = {number}
            elif number in ready:
                listeners = {number} | not_ready
            worker.channel.send(Accept(listeners=listeners, reports_ready=number in ready))

    def _worker_changed(self) -> None:
        """Reports a change of a worker's state to the operators' listener.

        If all workers serve the same model, reports this model too.
        """
        if self._admin is None:
            return
        served = [worker.manifest for worker in self._workers.values() if worker.manifest is not None]
        if served and all(manifest == served[0] for manifest in served):
            self._admin.show_model(served[0])
        self._admin.notify_workers_changed()

    def _apply_settings(self, row: Revision, is_reachable: bool) -> None:
        """Sends the operator's settings to every worker. A worker that starts later receives them in its WorkerConfig.

        row: the revision with the settings. is_reachable: whether the store of the settings is reachable.
        """
        self._settings_update = SettingsUpdate(revision=row.revision, state=row.state, is_reachable=is_reachable)
        for worker in self._workers.values():
            worker.channel.send(self._settings_update)

    def _worker_states(self) -> list[WorkerState]:
        return [
            WorkerState(
                worker.number,
                worker.process.pid,
                worker.ready_s is not None,
                worker.revision,
                None if worker.manifest is None else f"{worker.manifest.name} {worker.manifest.version}",
                worker.parked_tokens,
                worker.own_tokens,
            )
            for worker in self._workers.values()
        ]

    async def _check_token(self, sha256: str) -> None:
        """Lets a ready worker check the token file with this SHA-256. Every worker checks it again later.

        Tries another worker if one does not reply within TOKEN_CHECK_TIMEOUT_S. Raises TokenFileError if the model
        cannot use the token, and NotReadyError if no ready worker replies.
        """
        for worker in [worker for worker in self._workers.values() if worker.ready_s is not None]:
            if sha256 not in worker.token_checks:
                worker.token_checks[sha256] = asyncio.get_running_loop().create_future()
                worker.channel.send(CheckToken(sha256=sha256))
            try:
                async with asyncio.timeout(TOKEN_CHECK_TIMEOUT_S):
                    error = await asyncio.shield(worker.token_checks[sha256])
            except TimeoutError:
                continue
            if error is not None:
                raise TokenFileError(error)
            return
        raise NotReadyError

    async def _send_heartbeats(self) -> None:
        """Sends a heartbeat to each ready worker every HEARTBEAT_S seconds.

        Kills a worker that did not reply to MAX_MISSED_HEARTBEATS heartbeats in a row, because its event loop is
        blocked. Probes of the port do not detect such a worker, because they may reach other workers.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for worker in self._workers.values():
                if worker.missed_heartbeats >= MAX_MISSED_HEARTBEATS:
                    _log(logging.ERROR, "worker killed: it did not return heartbeats", worker)
                    worker.process.kill()
                elif worker.ready_s is not None:  # before that, compiling an engine may block the loop
                    worker.missed_heartbeats += 1
                    worker.channel.send(Heartbeat())

    async def _reload_on_request(self) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            try:
                bundle = await asyncio.to_thread(
                    locate_bundle, self._settings.bundle, must_exist=False, cache=self._settings.cache_dir
                )
            except TureenError as error:
                logger.error("reload failed, the previous bundle is still served: %s", error)
                continue
            previous = self._worker_settings
            self._worker_settings = previous.model_copy(update={"bundle": bundle})
            is_served = False
            for number in range(self._settings.workers):
                worker = self._workers.get(number)
                if worker is None:
                    continue  # its successor loads the current bundle
                worker.channel.send(Reload(bundle=bundle))
                if not await worker.reload_results.get():
                    served = {state.worker: state.model for state in self._worker_states()}
                    message = "reload stopped: this worker could not load the bundle; later workers are not reloaded"
                    _log(logging.ERROR, message, worker, served=served)
                    if not is_served:
                        self._worker_settings = previous
                    break
                is_served = True
                _log(logging.INFO, "worker reloaded", worker)

    def _stop(self) -> None:
        """Drains every ready worker, and kills the others. A second call skips the rest of the drain delay.

        The workers then have the drain delay, the drain timeout and KILL_AFTER_S more seconds. After this time, kills
        those that still run.
        """
        if not self._stopping.is_set():
            self._stopping.set()
            logger.info("stopping: the workers drain")
            for listener in self._listeners:
                listener.close()
            limit_s = self._settings.drain_delay_s + self._settings.drain_timeout_s + KILL_AFTER_S
            asyncio.get_running_loop().call_later(limit_s, self._kill)
        for worker in self._workers.values():
            if worker.ready_s is None:
                worker.process.kill()  # it accepted no request, and compiling an engine cannot be interrupted
            else:
                worker.channel.send(Drain())

    def _kill(self) -> None:
        self._has_failed = True
        for worker in self._workers.values():
            _log(logging.ERROR, "worker killed: it did not drain in time", worker)
            worker.process.kill()

    def _stop_after_failed_starts(self) -> None:
        logger.error("giving up: no worker became ready; each worker logged the reason above")
        self._has_failed = True
        self._stop()


def _cause(status: int) -> dict[str, object]:
    if status < 0:
        return {"signal": signal.Signals(-status).name}
    return {"status": status}


def _log(level: int, event: str, worker: WorkerProcess, **fields: object) -> None:
    logger.log(level, event, extra={FIELDS: {"worker": worker.number, "pid": worker.process.pid, **fields}})
