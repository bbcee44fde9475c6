"""Runs server processes for measurements: on a free port, yielded when ready, ended by SIGTERM.

Reads the resources that a server uses: memory, CPU, threads, descriptors. Knows nothing about requests.
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
TUREEN_SERVER = (sys.executable, "-m", "tureen.cli", "serve")
LEAKING_SERVER = (sys.executable, "-m", "benchmarks.leaking_server")


@dataclass(frozen=True)
class ResourceUsage:
    """Resources of all processes of a server together."""

    rss_bytes: int
    cpu_s: float
    threads: int
    descriptors: int


class Server:
    """A server process and its descendants."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.pid = process.pid

    def processes(self) -> list[psutil.Process]:
        """Return the server process, then its living descendants."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def usage(self) -> ResourceUsage:
        """Return the present resource usage."""
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
        return ResourceUsage(rss, cpu, threads, descriptors)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the processes, so that an idle server takes no CPU from the measured one."""
        processes = self.processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def is_ready(self, path: str) -> bool:
        """Return whether GET `path` has status 200."""
        try:
            urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def run_server(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server that listens on `port`, and yield it when `ready` has status 200.

    Raises RuntimeError if the process exits, or is not ready after START_S.
    """
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    server = Server(process, port)
    try:
        deadline = time.monotonic() + START_S
        while not server.is_ready(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not become ready: see its output above")
            time.sleep(0.05)
        yield server
    finally:
        descendants = server.processes()[1:]
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in descendants:  # some servers exit before their workers
            if child.is_running():
                child.kill()


@contextmanager
def run_tureen(bundle: Path, *flags: str, command: Sequence[str] = TUREEN_SERVER) -> Iterator[Server]:
    """Run `tureen serve` with the bundle. It logs no requests, like the servers it is compared with."""
    port = free_port()
    # Any free admin port: the default, port + 1, may belong to another server of this benchmark.
    options = ("--port", str(port), "--admin-port", "0", "--log-level", "warning", *flags)
    with run_server([*command, str(bundle), *options], port, "/readyz") as server:
        yield server


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
