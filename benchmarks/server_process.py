"""Starts server processes for measurements, waits until they are ready, and stops them by SIGTERM.

Reads the resources that a server uses: memory, CPU, threads, descriptors. Knows nothing about requests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
    """The resources that all processes of a server use together."""

    rss_bytes: int  # resident memory
    cpu_s: float  # CPU seconds since the start, user and system
    threads: int  # number of threads
    descriptors: int  # number of open file descriptors


class Server:
    """A running server: its process and the descendants of that process, such as workers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.pid = process.pid

    def processes(self) -> list[psutil.Process]:
        """Returns the server process, then its living descendants; empty if the server has ended."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def usage(self) -> ResourceUsage:
        """Returns the current resource usage."""
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
        """Suspends all processes of the server during the `with` block.

        So a server that is not measured takes no CPU from the measured one.
        """
        processes = self.processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def is_ready(self, path: str) -> bool:
        """Returns whether the server responds to GET `path` with a status below 400 within 5 s."""
        try:
            urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def run_server(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Runs a server that listens on `port`, and yields it when it is ready. Stops it by SIGTERM after the `with` block.

    ready: the path whose GET response shows that the server is ready. environment: additional environment variables.
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
    """Runs `tureen serve` with the bundle, and yields the server when it is ready.

    flags: additional flags of `tureen serve`. command: the program and arguments before the bundle. The server logs no
    requests, because the servers with which it is compared log none.
    """
    port = free_port()
    # Any free admin port: the default, port + 1, may belong to another server of this benchmark.
    options = ("--port", str(port), "--admin-port", "0", "--log-level", "warning", *flags)
    with run_server([*command, str(bundle), *options], port, "/readyz") as server:
        yield server


@contextmanager
def others_suspended(server: Server, servers: Iterable[Server]) -> Iterator[None]:
    """Suspends all of `servers` except `server` during the `with` block."""
    with ExitStack() as stack:
        for other in servers:
            if other is not server:
                stack.enter_context(other.suspended())
        yield


def free_port() -> int:
    """Returns a TCP port that is free at the time of the call."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
