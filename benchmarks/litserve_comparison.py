"""Compares the speed of Tureen with that of LitServe, on the same graph, engine, decoder and images.

Measures the two servers in turn. LitServe runs with the best settings that a search finds. LitServe is installed in a
separate virtual environment in the user's cache directory. Both servers use the same versions of all other packages.
"""

from __future__ import annotations

import math
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.load import ClosedLoopResult
from benchmarks.saturation import CONNECTIONS, run_closed_loop
from benchmarks.server_process import Server, free_port, run_server, run_tureen
from benchmarks.targets import format_figure, median, ratio, report_target
from benchmarks.workload import ROOT, Workload, classify_requests
from tureen.machine import available_cpus, default_cache_directory

VERSION = "0.2.19"
LITSERVE_MODULE = "benchmarks.litserve_server"
TRIAL_S = 4  # of load for each setting that the search tries


@dataclass(frozen=True)
class LitServeSettings:
    """The options of the program `benchmarks.litserve_server`."""

    max_batch_size: int = 16
    batch_timeout: float = 0.002  # seconds that an incomplete batch waits for more requests
    workers: int = 1  # processes with an engine (workers_per_device)
    decode_threads: int = 1
    fast_queue: bool = False  # option of LitServe: a faster queue between its processes
    api_servers: int = 1  # processes that receive requests (num_api_servers)

    @property
    def flags(self) -> list[str]:
        """These options as command-line flags of `benchmarks.litserve_server`."""
        flags = []
        for field in fields(self):
            value = getattr(self, field.name)
            name = f"--{field.name.replace('_', '-')}"
            flags += ([name] if value else []) if isinstance(value, bool) else [name, str(value)]
        return flags

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


# The search tries the options one after the other, and keeps the best value of each.
CHOICES: dict[str, tuple[object, ...]] = {
    "workers": (1, available_cpus()),
    "decode_threads": (1, available_cpus()),
    "max_batch_size": (8, 16, 32),
    "batch_timeout": (0, 0.002, 0.01),
    "fast_queue": (False, True),
    "api_servers": (1, 2),
}


def compare_with_litserve(workload: Workload) -> None:
    """Prints Tureen's throughput at 64 connections, and its p50 latency at one connection, as ratios to LitServe's."""
    python = litserve_python()
    trials: dict[LitServeSettings, tuple[ClosedLoopResult, ClosedLoopResult]] = {}
    best_throughput = find_best_settings(python, workload, trials, lambda busy, alone: busy.rate)
    best_latency = find_best_settings(python, workload, trials, lambda busy, alone: -alone.percentile_ms(50))
    print(f"  best throughput: {best_throughput}\n  best p50: {best_latency}", flush=True)
    ours, theirs = classify_requests(workload.images), form_requests(workload.images)
    rates: list[float] = []
    latencies: list[float] = []
    with ExitStack() as stack:
        tureen = stack.enter_context(run_tureen(workload.bundle.path, *workload.server_flags))
        loaded = stack.enter_context(run_litserve(python, workload, best_throughput))
        alone = (
            loaded
            if best_latency == best_throughput
            else stack.enter_context(run_litserve(python, workload, best_latency))
        )
        servers = {tureen, loaded, alone}
        for turn in range(workload.rounds):
            runs = {
                "tureen, 64": lambda: run_alone(tureen, servers, ours, CONNECTIONS, workload.seconds),
                "litserve, 64": lambda: run_alone(loaded, servers, theirs, CONNECTIONS, workload.seconds),
                "tureen, 1": lambda: run_alone(tureen, servers, ours, 1, workload.seconds),
                "litserve, 1": lambda: run_alone(alone, servers, theirs, 1, workload.seconds),
            }
            loads = {name: runs[name]() for name in sorted(runs, reverse=bool(turn % 2))}
            for name, load in loads.items():
                print(f"  {name:<13} {load}", flush=True)
            rates.append(ratio(loads["tureen, 64"].rate, loads["litserve, 64"].rate))
            latencies.append(ratio(loads["tureen, 1"].percentile_ms(50), loads["litserve, 1"].percentile_ms(50)))
    report_target(f"LitServe {VERSION}: Tureen throughput / its, 64 connections", "≥", 1.35, median(rates))
    report_target(f"LitServe {VERSION}: Tureen p50 / its, one connection", "≤", 0.7, median(latencies))


def find_best_settings(python, workload, trials, score) -> LitServeSettings:  # type: ignore[no-untyped-def]
    """Returns the LitServeSettings with the highest score. The search changes one option at a time.

    python: path of the Python interpreter that has LitServe. score: computes a number from two ClosedLoopResults, at 64
    connections and at one connection. trials: both results by combination of options. The search adds those that it
    measures, so that a search with another score can reuse them.
    """
    requests = form_requests(workload.images)

    def measured_score(settings: LitServeSettings) -> float:
        if settings not in trials:
            with run_litserve(python, workload, settings) as server:
                run_closed_loop(server, requests, CONNECTIONS, 1)
                trials[settings] = (
                    run_closed_loop(server, requests, CONNECTIONS, TRIAL_S),
                    run_closed_loop(server, requests, 1, TRIAL_S),
                )
            busy, alone = trials[settings]
            p50 = format_figure(alone.percentile_ms(50), "6.2f")
            print(f"  {busy.rate:6.1f}/s, p50 at one {p50} ms   {settings}", flush=True)
        measured = float(score(*trials[settings]))
        return -math.inf if math.isnan(measured) else measured  # NaN would win every comparison of max()

    best = LitServeSettings()
    for name, choices in CHOICES.items():
        best = max((replace(best, **{name: choice}) for choice in dict.fromkeys(choices)), key=measured_score)
    return best


def run_alone(
    server: Server, servers: set[Server], requests: list[bytes], connections: int, seconds: float
) -> ClosedLoopResult:
    """Sends requests to one server for `seconds` while the other servers are suspended. Returns counts and latencies.

    Each of the `connections` sends its next request after the previous response.
    """
    with ExitStack() as stack:
        for other in servers - {server}:
            stack.enter_context(other.suspended())
        return run_closed_loop(server, requests, connections, seconds)


@contextmanager
def run_litserve(python: Path, workload: Workload, settings: LitServeSettings) -> Iterator[Server]:
    """Runs LitServe with these settings, and yields the server when it is ready."""
    port = free_port()
    command = [
        str(python), "-m", LITSERVE_MODULE, "--bundle", str(workload.bundle.path), "--port", str(port),
        "--engine", workload.engine, "--precision", workload.precision, *settings.flags,
    ]  # fmt: skip
    with run_server(command, port, "/health", {"PYTHONPATH": str(ROOT)}) as server:
        yield server


def litserve_python() -> Path:
    """Returns the path of a Python interpreter that has LitServe. Creates the virtual environment if it is missing."""
    home = default_cache_directory() / "benchmarks" / f"litserve-{VERSION}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        site = subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        # Shares the packages of this environment, so that pip installs only LitServe.
        (Path(site.strip()) / "tureen-benchmarks.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"litserve=={VERSION}"]
        subprocess.run([str(python), *install], check=True)
        (home / "complete").touch()
    return python


def form_requests(images: list[bytes]) -> list[bytes]:
    """Returns a complete HTTP request for each image. The image is the form file `request`, which LitServe reads."""
    head = (
        b'--tureen\r\nContent-Disposition: form-data; name="request"; filename="photograph.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n"
    )
    bodies = [head + image + b"\r\n--tureen--\r\n" for image in images]
    return [
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=tureen\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
