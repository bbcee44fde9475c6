"""Stopping the server, killing one of its workers and reloading its bundle while requests are under way.

Workers and reloading are measured where the server has them. What counts as lost is what a client sees: a request that
was sent whole and got no answer. A zero is printed with what it says of the true rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from benchmarks.load import LOST, Answer, Connection
from benchmarks.server_process import Server, serving
from benchmarks.soak import sound_requests
from benchmarks.subject import SMALL_BUNDLE, Subject
from benchmarks.targets import line, none_lost
from serve.inference.service import Service
from serve.settings import Settings
from tureen.bundle.bundle import load_bundle, write_bundle

CLIENTS = 16
BEFORE_S = 0.5  # of load before the signal
AFTER_S = 5.0  # of load after it, where the server stays
BACK_S = 5.0


@dataclass(frozen=True)
class Asked:
    """One request and its end; times by time.perf_counter."""

    connected_s: float
    sent_s: float
    ended_s: float
    answer: Answer


@dataclass
class Traffic:
    """Clients on keep-alive connections that ask without a pause, until they are told to stop or nobody listens."""

    port: int
    requests: list[bytes]
    asked: list[Asked] = field(default_factory=list)
    refused_connections: int = 0
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
            answer = await connection.answer(self.requests[turn % len(self.requests)])
            self.asked.append(Asked(connected_s, sent_s, time.perf_counter(), answer))
            turn += CLIENTS
        if connection is not None:
            connection.close()

    @property
    def failed(self) -> list[Asked]:
        """Whatever was not answered with 200."""
        return [a for a in self.asked if a.answer.status != 200]


def sigterm(subject: Subject) -> None:
    """SIGTERM under load, many times: every request sent before it is answered, and the process ends in order."""
    lost = under_way = later = 0
    statuses: set[int | None] = set()
    slowest = 0.0
    for _ in range(subject.times):
        with serving(SMALL_BUNDLE) as server:
            traffic, signalled_s, ended_s = uvloop.run(stopped_under_load(server))
            slowest = max(slowest, ended_s - signalled_s)
            statuses.add(server.process.wait(1))
        under_way += sum(a.sent_s < signalled_s <= a.ended_s for a in traffic.asked)
        lost += sum(a.sent_s < signalled_s for a in traffic.failed)
        later += sum(a.sent_s >= signalled_s and a.answer.status == LOST for a in traffic.failed)
    note = f"{later} sent after the signal met a closing connection; the slowest took {slowest:.1f} s to end"
    none_lost(f"SIGTERM × {subject.times}: requests under way lost", lost, under_way, note)
    line(f"SIGTERM × {subject.times}: exit statuses but 0", "=", 0, len(statuses - {0}), str(statuses))


async def stopped_under_load(server: Server) -> tuple[Traffic, float, float]:
    traffic = Traffic(server.port, sound_requests())
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


def killed_worker(subject: Subject) -> None:
    """SIGKILL of one of two workers under load: only what that worker had is lost, and another takes its place."""
    if "workers" not in Settings.model_fields:
        print("  not measured: this server has no --workers")
        return
    most = own = others = asked = 0
    slowest = 0.0
    for _ in range(subject.times):  # each time a server of its own: one that dies again and again may take its time
        with serving(SMALL_BUNDLE, "--workers", "2") as server:
            traffic, kill = uvloop.run(killed_under_load(server))
        most += kill.connections
        # A request on a connection from before the kill, to the other worker, has no reason to fail.
        own += sum(a.connected_s < kill.at_s for a in traffic.failed)
        others += sum(a.connected_s >= kill.at_s for a in traffic.failed)
        asked += sum(a.sent_s >= kill.at_s for a in traffic.asked)
        slowest = max(slowest, kill.back_s)
    line(f"SIGKILL of a worker × {subject.times}: lost of its connections", "≤", most, own)
    none_lost(f"SIGKILL of a worker × {subject.times}: lost otherwise", others, asked)
    line("SIGKILL of a worker: seconds until two again", "≤", BACK_S, slowest)


@dataclass(frozen=True)
class Kill:
    """When a worker was killed, how many connections it had, and how long the server was short of it."""

    at_s: float
    connections: int
    back_s: float


async def killed_under_load(server: Server) -> tuple[Traffic, Kill]:
    """Kill a worker that has connections, and wait until a process that was not there before has some."""
    before = server.processes()
    traffic = Traffic(server.port, sound_requests())
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(BEFORE_S)
    victim = max(before[1:], key=established)
    held = established(victim)
    victim.kill()
    at_s, back_s = time.perf_counter(), float("inf")
    fresh: list[Connection] = []  # the clients stay with the other worker, so somebody has to come anew
    while back_s == float("inf") and time.perf_counter() < at_s + 2 * BACK_S:
        await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            fresh.append(await Connection.open(server.port))
        if any(established(process) for process in server.processes() if process not in before):
            back_s = time.perf_counter() - at_s
    for connection in fresh:
        connection.close()
    await asyncio.sleep(BEFORE_S)
    traffic.is_over = True
    await running
    return traffic, Kill(at_s, held, back_s)


def established(process: psutil.Process) -> int:
    """TCP connections that the process has with clients."""
    try:
        return sum(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return 0


def reload(subject: Subject) -> None:
    """SIGHUP under load, each time with another bundle in place: none fails, and the answers change over."""
    if not inspect.iscoroutinefunction(getattr(Service, "reload", None)):
        print("  not measured: this server has no reload")
        return
    failed = asked = 0
    changed = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        shutil.copytree(SMALL_BUNDLE, path)
        with serving(path) as server:
            for turn in range(subject.times):
                version = f"reload-{turn}"
                traffic, signalled_s = uvloop.run(reloaded_under_load(server, path, version))
                failed += len(traffic.failed)
                asked += len(traffic.asked)
                changed_s = [a.ended_s for a in traffic.asked if version.encode() in a.answer.body]
                changed += bool(changed_s)
                slowest = max(slowest, min(changed_s, default=float("inf")) - signalled_s)
    none_lost(f"reload × {subject.times}: requests that failed", failed, asked)
    note = f"after {slowest:.1f} s at most"
    line(f"reload × {subject.times}: answered by the next bundle", "=", subject.times, changed, note)


async def reloaded_under_load(server: Server, path: Path, version: str) -> tuple[Traffic, float]:
    """Put the same model in place under another version, and have it loaded."""
    bundle = load_bundle(path)
    files = {name: (path / name).read_bytes() for name in bundle.manifest.files}
    traffic = Traffic(server.port, sound_requests())
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(BEFORE_S)
    write_bundle(path, bundle.manifest.model_copy(update={"version": version}), files, overwrite=True)
    signalled_s = time.perf_counter()
    server.process.send_signal(signal.SIGHUP)
    while time.perf_counter() < signalled_s + AFTER_S and version.encode() not in traffic.asked[-1].answer.body:
        await asyncio.sleep(0.05)
    await asyncio.sleep(BEFORE_S)
    traffic.is_over = True
    await running
    return traffic, signalled_s
