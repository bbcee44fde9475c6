"""Measures the latency of requests while the server runs a batch job, and the throughput of that job.

    python -m benchmarks.jobs

Uses photographs, and a ViT-Ti/16 of random weights at 224 × 224 pixels. First measures the capacity of the server in
requests per second. Then requests arrive at random times, at a share of that capacity. Phases without a job and with a
running job alternate. Prints the p99 latency with a job as a ratio to the p99 latency without a job. Then prints the
throughput of the job as a share of the capacity that the requests do not use.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.load import NO_SUCCESS, OpenLoopResult, closed_loop, open_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import Server, free_port, run_tureen
from benchmarks.targets import format_figure, median, percentile, ratio, report_target
from benchmarks.workload import classify_requests, load_photographs, make_random_bundle
from serve.commands.admin_client import AdminClient

SHARES = (0.25, 0.5)
CONNECTIONS = 16
COPIES = 100  # of each photograph, so that no job ends during the measurement


@dataclass(frozen=True)
class JobPhase:
    """The responses to the requests of one phase, and the throughput of the job in that phase."""

    load: OpenLoopResult
    job_rate: float  # images per second of the job; 0 if no job runs

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    def percentile_ms(self, percent: float) -> float:
        """Returns the percentile `percent` of the latencies in ms; NaN if no request succeeded. percent: 0 to 100.

        Requests in the first tenth of the phase do not count. While no requests arrive, a job uses longer runs of the
        engine, and the first requests wait for the end of such a run.
        """
        latencies = [r.latency_s for r in self.load.of_status(200) if r.intended_s >= self.load.seconds / 10]
        return 1000 * percentile(latencies, percent)

    def __str__(self) -> str:
        p50, p99 = self.percentile_ms(50), self.p99_ms
        times = NO_SUCCESS if math.isnan(p50) else f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        return f"{times}, job {self.job_rate:.1f} images/s"


@contextmanager
def run_job_server(work: Path, images: list[bytes], flags: list[str]) -> Iterator[tuple[Server, AdminClient]]:
    """Runs a server that accepts jobs. When it is ready, yields the server and a client of its admin listener.

    work: an empty directory. Creates three folders in it: `in` for the input of jobs, `out` for their output and
    `state` for the server. Writes COPIES copies of each image into `in`. flags: additional flags of `tureen serve`.
    """
    for folder in ("in", "out", "state"):
        (work / folder).mkdir()
    for n, image in enumerate(images):
        for copy in range(COPIES):
            (work / "in" / f"{copy:03} {n:03}.jpg").write_bytes(image)
    port = free_port()
    roots = ("--job-input-roots", str(work / "in"), "--job-output-roots", str(work / "out"))
    admin = ("--state-dir", str(work / "state"), "--admin-port", str(port))
    with run_tureen(make_random_bundle(work / "vit", images).path, *admin, *roots, *flags) as server:
        token = (work / "state" / "admin-token").read_text().strip()
        yield server, AdminClient(f"http://127.0.0.1:{port}", token)


def run_phase(
    server: Server, client: AdminClient, job: str | None, requests: list[bytes], rate: float, seconds: float
) -> JobPhase:
    """Sends requests at random times for `seconds`. Returns the responses, and the images per second of the job.

    job: the id of the running job; None if no job runs, and then the job's rate is 0. rate: requests per second.
    """
    before = client.job(job)["done"] if job else 0
    started = time.perf_counter()
    load = uvloop.run(open_loop(server.port, requests, rate, seconds, seed=1))
    elapsed = time.perf_counter() - started
    done = client.job(job)["done"] - before if job else 0
    return JobPhase(load, done / elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="openvino")
    options, flags = parser.parse_known_args()
    print(describe_machine())
    images = load_photographs()
    requests = classify_requests(images)
    with (
        tempfile.TemporaryDirectory() as directory,
        run_job_server(Path(directory), images, ["--engine", options.engine, *flags]) as (server, client),
    ):
        uvloop.run(closed_loop(server.port, requests, CONNECTIONS, 2))
        load = uvloop.run(closed_loop(server.port, requests, CONNECTIONS, options.seconds))
        capacity = load.rate
        print(f"  capacity {capacity:.1f} requests/s: {load}", flush=True)
        names = itertools.count()
        phases: dict[float, list[tuple[JobPhase, JobPhase]]] = {share: [] for share in SHARES}
        for _, share in itertools.product(range(options.rounds), SHARES):
            without = run_phase(server, client, None, requests, share * capacity, options.seconds)
            output = str(Path(directory) / "out" / str(next(names)))
            job = client.submit_job({"input": str(Path(directory) / "in"), "output": output})["id"]
            while client.job(job)["done"] == 0:
                time.sleep(0.2)
            beside = run_phase(server, client, job, requests, share * capacity, options.seconds)
            client.job_action(job, "cancel")
            while client.job(job)["state"] != "cancelled":
                time.sleep(0.2)
            phases[share].append((without, beside))
            print(f"  at {share:g} of capacity: without {without}\n                       with {beside}", flush=True)
        for share, pairs in phases.items():
            slowdown = median(ratio(beside.p99_ms, without.p99_ms) for without, beside in pairs)
            share_of_rest = median(ratio(beside.job_rate, (1 - share) * capacity) for _, beside in pairs)
            note = f"job: {format_figure(share_of_rest, '.2f')} of the remaining capacity"
            report_target(f"p99 with a job / without, at {share:g} of capacity", "≤", 1.2, slowdown, note)


if __name__ == "__main__":
    main()
