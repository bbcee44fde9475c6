"""Real server processes to be measured: started on a free port, ready when handed over, ended by SIGTERM.

Knows what a process costs (memory, CPU, threads, descriptors), and nothing of what is sent to it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import HOST

START_S = 120
STOP_S = 60
TUREEN = (sys.executable, "-m", "tureen.cli", "serve")
LEAKING = (sys.executable, "-m", "benchmarks.leaking_server")


@dataclass(frozen=True)
class Cost:
    """What a server's processes hold and have used, all of them together."""

    rss_bytes: int
    cpu_s: float
    threads: int
    descriptors: int


class Server:
    """A server process and whatever it has started."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.pid = process.pid

    def processes(self) -> list[psutil.Process]:
        """The process itself, then those it has started and that are alive."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cost(self) -> Cost:
        """As of now."""
        rss, cpu, threads, descriptors = 0, 0.0, 0, 0
        for process in self.processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss += process.memory_info().rss
                    cpu += times.user + times.system
                    threads += process.num_threads()
                    descriptors += process.num_fds()
            except psutil.NoSuchProcess:
                continue
        return Cost(rss, cpu, threads, descriptors)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the processes, so that a server that nobody asks takes nothing from one that is measured."""
        processes = self.processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def is_ready(self, path: str) -> bool:
        """Whether the server answers 200 there."""
        try:
            urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def running(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The command's server, which listens on `port`, once it answers 200 at `ready`; raises RuntimeError if it ends."""
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    server = Server(process, port)
    try:
        until = time.monotonic() + START_S
        while not server.is_ready(ready):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{' '.join(command)} did not become ready, see what it said above")
            time.sleep(0.05)
        yield server
    finally:
        rest = server.processes()[1:]
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in rest:  # of a server that leaves its workers behind
            if child.is_running():
                child.kill()


@contextmanager
def serving(bundle: Path, *flags: str, command: Sequence[str] = TUREEN) -> Iterator[Server]:
    """Tureen's server of that bundle, without a log line for each request, as the other servers have none."""
    port = free_port()
    # Its operator's listener may be any, which by default is the port after: another server's here.
    options = ("--port", str(port), "--admin-port", "0", "--log-level", "warning", *flags)
    with running([*command, str(bundle), *options], port, "/readyz") as server:
        yield server


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
