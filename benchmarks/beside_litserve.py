"""LitServe beside Tureen: same graph, engine, decoder and images, in turns; LitServe at the best settings found here.

It gets an environment of its own in the user's cache, which sees this one's packages, so that both run the same.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

from benchmarks.load import Load
from benchmarks.server_process import Server, free_port, running, serving
from benchmarks.speed import CONNECTIONS, ask
from benchmarks.subject import ROOT, Subject, classify_requests
from benchmarks.targets import line
from tureen.machine import available_cpus, default_cache_directory

VERSION = "0.2.19"
PROGRAM = "benchmarks.litserve_server"
SEARCH_S = 4  # of load for each setting tried


@dataclass(frozen=True)
class Settings:
    """What LitServe leaves to whoever runs it."""

    max_batch_size: int = 16
    batch_timeout: float = 0.002
    workers: int = 1
    decode_threads: int = 1
    fast_queue: bool = False
    api_servers: int = 1

    @property
    def flags(self) -> list[str]:
        flags = []
        for field in fields(self):
            value = getattr(self, field.name)
            name = f"--{field.name.replace('_', '-')}"
            flags += ([name] if value else []) if isinstance(value, bool) else [name, str(value)]
        return flags

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


# Tried one after the other, the best of each kept.
CHOICES: dict[str, tuple[object, ...]] = {
    "workers": (1, available_cpus()),
    "decode_threads": (1, available_cpus()),
    "max_batch_size": (8, 16, 32),
    "batch_timeout": (0, 0.002, 0.01),
    "fast_queue": (False, True),
    "api_servers": (1, 2),
}


def beside_litserve(subject: Subject) -> None:
    """Throughput at 64 connections and p50 at one, both against LitServe's."""
    python = environment()
    tried: dict[Settings, tuple[Load, Load]] = {}
    busiest = search(python, subject, tried, lambda busy, alone: busy.rate)
    quickest = search(python, subject, tried, lambda busy, alone: -alone.percentile_ms(50))
    print(f"  best throughput: {busiest}\n  best p50: {quickest}", flush=True)
    ours, theirs = classify_requests(subject.images), form_requests(subject.images)
    rates: list[float] = []
    latencies: list[float] = []
    with ExitStack() as stack:
        tureen = stack.enter_context(serving(subject.bundle.path, *subject.server_flags))
        loaded = stack.enter_context(litserve(python, subject, busiest))
        alone = loaded if quickest == busiest else stack.enter_context(litserve(python, subject, quickest))
        servers = {tureen, loaded, alone}
        for turn in range(subject.rounds):
            runs = {
                "tureen, 64": lambda: measured(tureen, servers, ours, CONNECTIONS, subject.seconds),
                "litserve, 64": lambda: measured(loaded, servers, theirs, CONNECTIONS, subject.seconds),
                "tureen, 1": lambda: measured(tureen, servers, ours, 1, subject.seconds),
                "litserve, 1": lambda: measured(alone, servers, theirs, 1, subject.seconds),
            }
            loads = {name: runs[name]() for name in sorted(runs, reverse=bool(turn % 2))}
            for name, load in loads.items():
                print(f"  {name:<13} {load}", flush=True)
            rates.append(loads["tureen, 64"].rate / loads["litserve, 64"].rate)
            latencies.append(loads["tureen, 1"].percentile_ms(50) / loads["litserve, 1"].percentile_ms(50))
    line(f"LitServe {VERSION}: our throughput / its, 64 connections", "≥", 1.35, median(rates))
    line(f"LitServe {VERSION}: our p50 / its, one connection", "≤", 0.7, median(latencies))


def search(python, subject, tried, merit) -> Settings:  # type: ignore[no-untyped-def]
    """The settings of most merit, found by changing one at a time; each is measured once for both merits."""
    requests = form_requests(subject.images)

    def value(settings: Settings) -> float:
        if settings not in tried:
            with litserve(python, subject, settings) as server:
                ask(server, requests, CONNECTIONS, 1)
                tried[settings] = (ask(server, requests, CONNECTIONS, SEARCH_S), ask(server, requests, 1, SEARCH_S))
            busy, alone = tried[settings]
            print(f"  {busy.rate:6.1f}/s, p50 at one {alone.percentile_ms(50):6.2f} ms   {settings}", flush=True)
        return float(merit(*tried[settings]))

    best = Settings()
    for name, choices in CHOICES.items():
        best = max((replace(best, **{name: choice}) for choice in dict.fromkeys(choices)), key=value)
    return best


def measured(server: Server, servers: set[Server], requests: list[bytes], connections: int, seconds: float) -> Load:
    """A closed loop on one server while the others stand still."""
    with ExitStack() as stack:
        for other in servers - {server}:
            stack.enter_context(other.suspended())
        return ask(server, requests, connections, seconds)


@contextmanager
def litserve(python: Path, subject: Subject, settings: Settings) -> Iterator[Server]:
    """A LitServe process with these settings; ready when handed over."""
    port = free_port()
    command = [
        str(python), "-m", PROGRAM, "--bundle", str(subject.bundle.path), "--port", str(port),
        "--engine", subject.engine, "--precision", subject.precision, *settings.flags,
    ]  # fmt: skip
    with running(command, port, "/health", {"PYTHONPATH": str(ROOT)}) as server:
        yield server


def environment() -> Path:
    """The Python that has LitServe; made where it is missing."""
    home = default_cache_directory() / "benchmarks" / f"litserve-{VERSION}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        site = subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        # What is installed here already is not installed again there.
        (Path(site.strip()) / "tureen-benchmarks.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"litserve=={VERSION}"]
        subprocess.run([str(python), *install], check=True)
        (home / "complete").touch()
    return python


def form_requests(images: list[bytes]) -> list[bytes]:
    """Whole HTTP requests as LitServe takes them: each image as the file `request` of a form."""
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
