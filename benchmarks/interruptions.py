"""Counts the lost requests in three cases: the server stops, a worker is killed, and the bundle is reloaded.

A request counts as lost if a client sent it completely and received no response with status 200. If no request is lost,
the program prints an upper bound of the true loss rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from benchmarks.load import NO_RESPONSE, Connection, Response
from benchmarks.server_process import Server, run_tureen
from benchmarks.soak import valid_requests
from benchmarks.targets import report_lost, report_target
from benchmarks.workload import SMALL_BUNDLE, Workload
from tureen.bundle.bundle import load_bundle, write_bundle

CLIENTS = 16
BEFORE_S = 0.5  # of load before the signal
AFTER_S = 5.0  # of load after the signal, at most, while the server runs
RECOVERY_S = 5.0


@dataclass(frozen=True)
class CompletedRequest:
    """The response to a request, and the times of the request.

    connected_s, sent_s, ended_s: when the connection opened, when the request was sent, and when the response or the
    connection ended; seconds of time.perf_counter.
    """

    connected_s: float
    sent_s: float
    ended_s: float
    response: Response


@dataclass
class Traffic:
    """CLIENTS clients that send requests without a pause, each over its keep-alive connection.

    The clients stop when the caller sets `is_over`. `completed` has the times and the response of every request.
    """

    port: int
    requests: list[bytes]
    completed: list[CompletedRequest] = field(default_factory=list)
    refused_connections: int = 0  # number of failed attempts to connect
    is_over: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client(turn) for turn in range(CLIENTS)))

    async def _client(self, turn: int) -> None:
        connection: Connection | None = None
        connected_s = 0.0
        while not self.is_over:
            if connection is None or not connection.is_open:
                try:
                    connection = await Connection.open(self.port)
                    connected_s = time.perf_counter()
                except OSError:
                    self.refused_connections += 1
                    await asyncio.sleep(0.01)
                    continue
            sent_s = time.perf_counter()
            response = await connection.request(self.requests[turn % len(self.requests)])
            self.completed.append(CompletedRequest(connected_s, sent_s, time.perf_counter(), response))
            turn += CLIENTS
        if connection is not None:
            connection.close()

    @property
    def failed(self) -> list[CompletedRequest]:
        """The requests that have no response with status 200."""
        return [r for r in self.completed if r.response.status != 200]


def measure_sigterm(workload: Workload) -> None:
    """Stops servers by SIGTERM under load; prints the number of lost requests and the exit statuses.

    Target: each request sent before the signal gets a response, and the process exits with 0.
    """
    lost = in_progress = later = 0
    statuses: set[int | None] = set()
    slowest = 0.0
    for _ in range(workload.repetitions):
        with run_tureen(SMALL_BUNDLE) as server:
            traffic, signalled_s, ended_s = uvloop.run(stop_under_load(server))
            slowest = max(slowest, ended_s - signalled_s)
            statuses.add(server.process.wait(1))
        in_progress += sum(r.sent_s < signalled_s <= r.ended_s for r in traffic.completed)
        lost += sum(r.sent_s < signalled_s for r in traffic.failed)
        later += sum(r.sent_s >= signalled_s and r.response.status == NO_RESPONSE for r in traffic.failed)
    note = f"{later} sent after the signal met a closing connection; longest stop {slowest:.1f} s"
    report_lost(f"SIGTERM × {workload.repetitions}: requests in progress lost", lost, in_progress, note)
    report_target(
        f"SIGTERM × {workload.repetitions}: exit statuses other than 0", "=", 0, len(statuses - {0}), str(statuses)
    )


async def stop_under_load(server: Server) -> tuple[Traffic, float, float]:
    """Sends SIGTERM to the server under load. Returns the traffic, and the times of the signal and of the exit.

    Times are seconds of time.perf_counter.
    """
    traffic = Traffic(server.port, valid_requests())
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(BEFORE_S)
    signalled_s = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    while server.process.poll() is None:
        await asyncio.sleep(0.01)
    ended_s = time.perf_counter()
    traffic.is_over = True
    await running
    return traffic, signalled_s, ended_s


def measure_worker_kill(workload: Workload) -> None:
    """Kills one of two workers under load; prints the number of lost requests and the seconds until recovery.

    Target: only requests on connections of that worker are lost, and a new worker starts.
    """
    held = lost_with_worker = lost_otherwise = sent_later = 0
    slowest = 0.0
    for _ in range(workload.repetitions):  # a new server each time, because a restart after repeated deaths is delayed
        with run_tureen(SMALL_BUNDLE, "--workers", "2") as server:
            traffic, kill = uvloop.run(kill_under_load(server))
        held += kill.connections
        # Each connection of the killed worker may lose one request. A later connection must not fail.
        lost_with_worker += sum(r.connected_s < kill.at_s for r in traffic.failed)
        lost_otherwise += sum(r.connected_s >= kill.at_s for r in traffic.failed)
        sent_later += sum(r.sent_s >= kill.at_s for r in traffic.completed)
        slowest = max(slowest, kill.recovery_s)
    report_target(f"SIGKILL of a worker × {workload.repetitions}: lost of its connections", "≤", held, lost_with_worker)
    report_lost(f"SIGKILL of a worker × {workload.repetitions}: lost otherwise", lost_otherwise, sent_later)
    report_target("SIGKILL of a worker: seconds until two workers", "≤", RECOVERY_S, slowest)


@dataclass(frozen=True)
class WorkerKill:
    """The kill of a worker.

    at_s: its time, in seconds of time.perf_counter. connections: open connections of the worker at that time.
    recovery_s: seconds until a new worker has a connection; infinite if none has one in time.
    """

    at_s: float
    connections: int
    recovery_s: float


async def kill_under_load(server: Server) -> tuple[Traffic, WorkerKill]:
    """Kills the worker with the most connections, and waits until a new worker has a connection.

    Returns the traffic and the data of the kill.
    """
    before = server.processes()
    traffic = Traffic(server.port, valid_requests())
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(BEFORE_S)
    victim = max(before[1:], key=client_connections)
    held = client_connections(victim)
    victim.kill()
    at_s, recovery_s = time.perf_counter(), float("inf")
    fresh: list[Connection] = []  # the clients stay with the other worker, so only new connections reach the new one
    while recovery_s == float("inf") and time.perf_counter() < at_s + 2 * RECOVERY_S:
        await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            fresh.append(await Connection.open(server.port))
        if any(client_connections(process) for process in server.processes() if process not in before):
            recovery_s = time.perf_counter() - at_s
    for connection in fresh:
        connection.close()
    await asyncio.sleep(BEFORE_S)
    traffic.is_over = True
    await running
    return traffic, WorkerKill(at_s, held, recovery_s)


def client_connections(process: psutil.Process) -> int:
    """Returns the number of established TCP connections of the process."""
    try:
        return sum(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return 0


def measure_reload(workload: Workload) -> None:
    """Reloads the bundle by SIGHUP under load, each time another version; prints the number of failed requests.

    Target: no request fails, and after each signal a response comes from the new version.
    """
    failed = sent = changed = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        shutil.copytree(SMALL_BUNDLE, path)
        with run_tureen(path) as server:
            for turn in range(workload.repetitions):
                version = f"reload-{turn}"
                traffic, signalled_s = uvloop.run(reload_under_load(server, path, version))
                failed += len(traffic.failed)
                sent += len(traffic.completed)
                changed_s = [r.ended_s for r in traffic.completed if version.encode() in r.response.body]
                changed += bool(changed_s)
                slowest = max(slowest, min(changed_s, default=float("inf")) - signalled_s)
    report_lost(f"reload × {workload.repetitions}: requests that failed", failed, sent)
    note = f"after {slowest:.1f} s at most"
    report_target(
        f"reload × {workload.repetitions}: responses by the next bundle", "=", workload.repetitions, changed, note
    )


async def reload_under_load(server: Server, path: Path, version: str) -> tuple[Traffic, float]:
    """Under load, replaces the bundle by the same model under another version, and sends SIGHUP.

    Returns the traffic and the time of the signal in seconds of time.perf_counter.
    """
    bundle = load_bundle(path)
    files = {name: (path / name).read_bytes() for name in bundle.manifest.files}
    traffic = Traffic(server.port, valid_requests())
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(BEFORE_S)
    write_bundle(path, bundle.manifest.model_copy(update={"version": version}), files, overwrite=True)
    signalled_s = time.perf_counter()
    server.process.send_signal(signal.SIGHUP)
    while time.perf_counter() < signalled_s + AFTER_S:
        if traffic.completed and version.encode() in traffic.completed[-1].response.body:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(BEFORE_S)
    traffic.is_over = True
    await running
    return traffic, signalled_s
