"""Keeps the worker processes of one server: starts them, replaces the dead, reloads in turn, drains all at the end.

Knows nothing about HTTP, engines or images. It binds and never accepts: each worker accepts from a listener of its
own, and while one is not ready the ready ones accept from its listener too, so that no connection waits for it.
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
from serve.control.worker_state import AdminServer, WorkerState
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
)
from serve.settings import Settings
from serve.telemetry.logs import FIELDS
from serve.telemetry.metrics import SHARED_DIRECTORY
from tureen.bundle.manifest import Manifest

DIVIDED = ("max_requests", "max_waiting_images", "max_body_memory", "max_decode_pixels", "max_decode_memory")
SOUND_S = 10.0  # a worker that was ready for as long died of something else than its start
LONGEST_PAUSE_S = 30.0
PULSE_S = 5.0
MOST_UNANSWERED = 6  # pulses, after which an event loop does not turn slowly but not at all
KILL_AFTER_S = 5.0  # beyond what a worker has to drain, it is stuck

logger = logging.getLogger("tureen.supervisor")


def supervise(
    settings: Settings,
    listeners: Sequence[socket.socket],
    on_ready: Callable[[], None],
    open_desk: Callable[[Path], AdminServer] | None = None,
) -> int:
    """Run the workers until SIGTERM or SIGINT; 0 then, 1 where none ever became ready or one had to be killed.

    on_ready is called when the first worker is. SIGHUP has each reload the bundle, one after the other. open_desk:
    makes what the operator's settings come from, given the directory that the workers share their metrics in.
    """
    with tempfile.TemporaryDirectory(prefix="tureen-metrics-") as metrics:
        desk = None if open_desk is None else open_desk(Path(metrics))
        return uvloop.run(Supervisor(settings, listeners, Path(metrics), on_ready, desk).run())


def share_of(settings: Settings) -> Settings:
    """The settings of each worker: what a server has of threads and permits is divided, not multiplied."""
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


def pause_s(early_deaths: int) -> float:
    """How long to wait before a worker is started again that died so many times in a row before it was sound."""
    return 0.0 if early_deaths <= 1 else min(LONGEST_PAUSE_S, 0.5 * 2 ** (early_deaths - 2))


@dataclass
class WorkerProcess:
    """A process, the line to it, and what it has said so far."""

    number: int
    process: subprocess.Popen[bytes]
    line: WorkerChannel
    ready_s: float | None = None  # time.monotonic
    manifest: Manifest | None = None  # of the bundle that it serves
    applied: int = 0  # revision of the operator's settings
    unanswered: int = 0  # pulses since it last said anything
    reloaded: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)

    @property
    def is_sound(self) -> bool:
        return self.ready_s is not None and time.monotonic() - self.ready_s >= SOUND_S


class Supervisor:
    """The processes of one server, by the number of their listener."""

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[socket.socket],
        metrics: Path,
        on_ready: Callable[[], None],
        desk: AdminServer | None = None,
    ) -> None:
        self._settings = settings
        self._share = share_of(settings)
        self._listeners = listeners
        self._metrics = metrics
        self._on_ready = on_ready
        self._desk = desk
        self._control: SettingsUpdate | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._was_ready = False
        self._stillborn = 0
        self._has_failed = False
        self._stopping = asyncio.Event()
        self._reload_wanted = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        if self._desk is not None:
            await self._desk.open(self._spread, self._states)
        beside = [asyncio.create_task(work) for work in (self._reload_when_wanted(), self._feel_pulses())]
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(self._keep(number))
        for task in beside:
            task.cancel()
        if self._desk is not None:
            await self._desk.close()
        return int(self._has_failed)

    async def _keep(self, number: int) -> None:
        """Have a worker of this number for as long as the server runs."""
        early_deaths = 0
        while not self._stopping.is_set():
            worker = await self._start(number)
            await self._listen_to(worker)
            status = worker.process.wait()  # the line has ended, and the process holds it to its last moment
            worker.line.close()
            del self._workers[number]
            mark_process_dead(number, str(self._metrics))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                if status and worker.ready_s is not None:  # one that was not ready is killed by `_stop`
                    self._has_failed = True
                    _log(logging.ERROR, "worker died while it drained", worker, **_cause(status))
                return
            self._share_out()
            self._show_model()
            early_deaths = 0 if worker.is_sound else early_deaths + 1
            pause = pause_s(early_deaths)
            _log(logging.ERROR, "worker died", worker, **_cause(status), restart_in_s=pause)
            if not self._was_ready:
                self._stillborn += 1
                if self._stillborn >= self._settings.workers:
                    self._give_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _start(self, number: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        listeners = [listener.fileno() for listener in self._listeners]
        with theirs:
            # Not a fork: whatever threads this process has, the worker is a fresh interpreter.
            process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
                [sys.executable, "-P", "-m", "serve.processes.worker_start", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *listeners),
                env={**os.environ, SHARED_DIRECTORY: str(self._metrics)},
            )
        worker = WorkerProcess(number, process, await WorkerChannel.on(ours))
        orders = WorkerConfig(
            worker=number,
            settings=self._share,
            listeners=listeners,
            metrics=str(self._metrics),
            control=self._control,
        )
        worker.applied = 0 if self._control is None else self._control.revision
        worker.line.say(orders)
        self._workers[number] = worker
        _log(logging.INFO, "worker started", worker)
        self._share_out()
        if self._stopping.is_set():
            process.kill()
        return worker

    async def _listen_to(self, worker: WorkerProcess) -> None:
        async for message in worker.line.messages():
            worker.unanswered = 0
            match message:
                case Ready():
                    worker.ready_s = time.monotonic()
                    self._share_out()
                    if not self._was_ready:
                        self._was_ready = True
                        self._on_ready()
                case ServedModel():
                    worker.manifest = message.manifest
                    self._show_model()
                case SettingsApplied():
                    worker.applied = message.revision
                case ReloadResult():
                    worker.reloaded.put_nowait(message.ok)
        worker.reloaded.put_nowait(False)

    def _share_out(self) -> None:
        """Tell each worker which listeners are its: its own, and those of workers that are not ready.

        Until a first one is ready, each answers for itself that it is not.
        """
        if self._stopping.is_set():
            return
        ready = {number for number, worker in self._workers.items() if worker.ready_s is not None}
        orphaned = set(range(self._settings.workers)) - ready
        for number, worker in self._workers.items():
            its = {number} if not ready else {number} | orphaned if number in ready else set()
            worker.line.say(Accept(listeners=its))

    def _show_model(self) -> None:
        """Show operators the model that every worker serves; while workers differ, the one shown before stays."""
        served = [worker.manifest for worker in self._workers.values() if worker.manifest is not None]
        if self._desk is not None and served and all(manifest == served[0] for manifest in served):
            self._desk.shows(served[0])

    def _spread(self, row: Revision, is_reachable: bool) -> None:
        """Have every worker follow; one that starts meanwhile has it among its orders."""
        self._control = SettingsUpdate(revision=row.revision, state=row.state, is_reachable=is_reachable)
        for worker in self._workers.values():
            worker.line.say(self._control)

    def _states(self) -> list[WorkerState]:
        return [
            WorkerState(
                worker.number,
                worker.process.pid,
                worker.ready_s is not None,
                worker.applied,
                None if worker.manifest is None else f"{worker.manifest.name} {worker.manifest.version}",
            )
            for worker in self._workers.values()
        ]

    async def _feel_pulses(self) -> None:
        """Kill a worker whose event loop stands still: who probes the port meets the others too, and may not notice."""
        while True:
            await asyncio.sleep(PULSE_S)
            for worker in self._workers.values():
                if worker.unanswered >= MOST_UNANSWERED:
                    _log(logging.ERROR, "worker killed: it has not answered for long", worker)
                    worker.process.kill()
                elif worker.ready_s is not None:  # compiling an engine may hold a loop up
                    worker.unanswered += 1
                    worker.line.say(Heartbeat())

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            for number in range(self._settings.workers):
                worker = self._workers.get(number)
                if worker is None:
                    continue  # whoever takes its place loads what lies there now
                worker.line.say(Reload())
                if not await worker.reloaded.get():
                    served = {state.worker: state.model for state in self._states()}
                    message = "reload stopped: this worker did not take it, no other is asked to"
                    _log(logging.ERROR, message, worker, served=served)
                    break
                _log(logging.INFO, "worker reloaded", worker)

    def _stop(self) -> None:
        """Have every worker drain; called again, without delay."""
        if not self._stopping.is_set():
            self._stopping.set()
            logger.info("stopping: the workers drain")
            for listener in self._listeners:
                listener.close()
            bound_s = self._settings.drain_delay_s + self._settings.drain_timeout_s + KILL_AFTER_S
            asyncio.get_running_loop().call_later(bound_s, self._kill)
        for worker in self._workers.values():
            if worker.ready_s is None:
                worker.process.kill()  # it has accepted nothing, and an engine being compiled cannot be interrupted
            else:
                worker.line.say(Drain())

    def _kill(self) -> None:
        self._has_failed = True
        for worker in self._workers.values():
            _log(logging.ERROR, "worker killed: it did not drain in time", worker)
            worker.process.kill()

    def _give_up(self) -> None:
        logger.error("giving up: no worker became ready; each has said above why it could not")
        self._has_failed = True
        self._stop()


def _cause(status: int) -> dict[str, object]:
    if status < 0:
        return {"signal": signal.Signals(-status).name}
    return {"status": status}


def _log(level: int, event: str, worker: WorkerProcess, **fields: object) -> None:
    logger.log(level, event, extra={FIELDS: {"worker": worker.number, "pid": worker.process.pid, **fields}})
