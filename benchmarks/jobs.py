"""What a batch job in the server costs those who ask meanwhile, and what it gets.

    python -m benchmarks.jobs

The photographs and a ViT-Ti/16 of random weights at 224. Requests come at random times at a share of the server's own
measured capacity, without a job and with one that runs at full speed, in turns. What the job gets is beside what the
requests left of the capacity.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from benchmarks.load import OpenLoad, closed_loop, open_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import Server, free_port, serving
from benchmarks.subject import classify_requests, photographs, random_bundle
from benchmarks.targets import line
from serve.commands.admin_client import AdminClient

SHARES = (0.25, 0.5)
CONNECTIONS = 16
COPIES = 100  # of each photograph: more than a job gets through here


@dataclass(frozen=True)
class Side:
    """One phase of requests, and what a job did meanwhile, in images a second."""

    load: OpenLoad
    job_rate: float

    @property
    def p99_ms(self) -> float:
        return self.ms(99)

    def ms(self, percent: float) -> float:
        """Of the last nine tenths of the time: where it was quiet, the first requests wait for a longer run."""
        some = [one.latency_s for one in self.load.of_status(200) if one.intended_s >= self.load.seconds / 10]
        return 1000 * float(np.percentile(some, percent))

    def __str__(self) -> str:
        return f"p50 {self.ms(50):.1f} ms, p99 {self.p99_ms:.1f} ms, job {self.job_rate:.1f} images/s"


@contextmanager
def served(work: Path, images: list[bytes], flags: list[str]) -> Iterator[tuple[Server, AdminClient]]:
    """A server that takes jobs, ready, and its operator."""
    for folder in ("in", "out", "state"):
        (work / folder).mkdir()
    for n, image in enumerate(images):
        for copy in range(COPIES):
            (work / "in" / f"{copy:03} {n:03}.jpg").write_bytes(image)
    port = free_port()
    roots = ("--job-input-roots", str(work / "in"), "--job-output-roots", str(work / "out"))
    where = ("--state-dir", str(work / "state"), "--admin-port", str(port))
    with serving(random_bundle(work / "vit", images).path, *where, *roots, *flags) as server:
        token = (work / "state" / "admin-token").read_text().strip()
        yield server, AdminClient(f"http://127.0.0.1:{port}", token)


def phase(
    server: Server, client: AdminClient, job: str | None, requests: list[bytes], rate: float, seconds: float
) -> Side:
    before = client.job(job)["done"] if job else 0
    began = time.perf_counter()
    load = uvloop.run(open_loop(server.port, requests, rate, seconds, seed=1))
    elapsed = time.perf_counter() - began
    done = client.job(job)["done"] - before if job else 0
    return Side(load, done / elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="openvino")
    options, flags = parser.parse_known_args()
    print(describe_machine())
    images = photographs()
    requests = classify_requests(images)
    with (
        tempfile.TemporaryDirectory() as directory,
        served(Path(directory), images, ["--engine", options.engine, *flags]) as (server, client),
    ):
        uvloop.run(closed_loop(server.port, requests, CONNECTIONS, 2))
        capacity = uvloop.run(closed_loop(server.port, requests, CONNECTIONS, options.seconds)).rate
        print(f"  capacity {capacity:.1f} requests/s", flush=True)
        names = itertools.count()
        sides: dict[float, list[tuple[Side, Side]]] = {share: [] for share in SHARES}
        for _, share in itertools.product(range(options.rounds), SHARES):
            without = phase(server, client, None, requests, share * capacity, options.seconds)
            output = str(Path(directory) / "out" / str(next(names)))
            job = client.submit_job({"input": str(Path(directory) / "in"), "output": output})["id"]
            while client.job(job)["done"] == 0:
                time.sleep(0.2)
            beside = phase(server, client, job, requests, share * capacity, options.seconds)
            client.job_action(job, "cancel")
            while client.job(job)["state"] != "cancelled":
                time.sleep(0.2)
            sides[share].append((without, beside))
            print(f"  at {share:g} of it: without {without}\n              with {beside}", flush=True)
        for share, pairs in sides.items():
            ratio = median(beside.p99_ms / without.p99_ms for without, beside in pairs)
            got = median(beside.job_rate / ((1 - share) * capacity) for _, beside in pairs)
            note = f"job: {got:.2f} of what was left"
            line(f"p99 with a job / without, at {share:g} of capacity", "≤", 1.2, ratio, note)


if __name__ == "__main__":
    main()
