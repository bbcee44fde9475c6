"""Measures the server through HTTP: throughput, latency of one connection, and the cost of different β in a batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import uvloop

from benchmarks.hardware_limit import LimitMeasurement, print_limit
from benchmarks.load import NO_SUCCESS, ClosedLoopResult, closed_loop
from benchmarks.server_process import Server, run_tureen
from benchmarks.targets import format_figure, median, ratio, report_target
from benchmarks.workload import Workload, classify_requests
from tureen.machine import available_cpus
from tureen.timing import run_in_turns

CONNECTIONS = 64


def measure_saturation(workload: Workload) -> None:
    """Prints the throughput at 64 connections as a share of the hardware limit, and the overhead of one request.

    The overhead is the p50 latency at one connection minus the time of decoding and inference.
    """
    requests = classify_requests(workload.images)
    measurement = LimitMeasurement(workload)
    busy: list[ClosedLoopResult] = []
    alone: list[ClosedLoopResult] = []
    server_s = 0.0
    with run_tureen(workload.bundle.path, *workload.server_flags) as server:
        run_closed_loop(server, requests, CONNECTIONS, 1)
        for turn in range(workload.rounds):
            with server.suspended():
                measurement.measure_round()
            before = server.usage().cpu_s
            busy.append(run_closed_loop(server, requests, CONNECTIONS, workload.seconds))
            server_s += server.usage().cpu_s - before
            alone.append(run_closed_loop(server, requests, 1, workload.seconds))
            print(f"  64 connections {busy[turn]}\n   1 connection  {alone[turn]}", flush=True)
    measurement.close()
    cost = measurement.cost
    print_limit(cost, workload)
    rate = median(load.rate for load in busy)
    p50_ms = median(load.percentile_ms(50) for load in alone)
    share = median(ratio(load.rate, cost.images_per_s) for load in busy)
    report_target("saturation: throughput at 64 connections / limit", "≥", 0.92, share, f"{rate:.1f}/s")
    extra_ms = p50_ms - 1000 * cost.single_image_s
    report_target(
        "one connection: p50 beyond decode + inference, ms", "≤", 1, extra_ms, f"p50 {format_figure(p50_ms, '.2f')} ms"
    )
    # Both CPU figures include the warm-up tenth of each round, so the count of requests does too.
    requests_count = sum(load.succeeded for load in busy) * 1.1
    if not requests_count:
        print("  core-milliseconds per request at 64 connections: unavailable", flush=True)
        return
    generator_s = sum(load.cpu_s for load in busy)
    wall_s = sum(load.seconds for load in busy) * 1.1
    engine_and_decode_ms = 1000 * (cost.decode_s + cost.engine_s)
    print(
        f"  core-milliseconds per request at 64 connections: server {1000 * server_s / requests_count:.2f}, of which "
        f"bare decode and engine {engine_and_decode_ms:.2f}; load generator {1000 * generator_s / requests_count:.2f}; "
        f"idle or other processes {1000 * (available_cpus() * wall_s - server_s - generator_s) / requests_count:.2f}",
        flush=True,
    )


def measure_mixed_betas(workload: Workload) -> None:
    """Prints the throughput with many β as a ratio to that with one β. Measures both in turn on one server."""
    count = len(workload.images)
    one = classify_requests(workload.images)
    mixed = classify_requests(workload.images, np.linspace(0, 1, count).tolist())
    with run_tureen(workload.bundle.path, *workload.server_flags) as server:
        run_closed_loop(server, one, CONNECTIONS, 1)
        runs = [partial(run_closed_loop, server, r, CONNECTIONS, workload.seconds) for r in (mixed, one)]
        mixed_loads, one_loads = run_in_turns(runs, rounds=2 * workload.rounds)
    report_mixed_betas(count, mixed_loads, one_loads)


def report_mixed_betas(count: int, mixed_loads: list[ClosedLoopResult], one_loads: list[ClosedLoopResult]) -> None:
    """Prints the throughput with `count` different β as a ratio to that with one β: the median over the rounds."""
    share = median(ratio(m.rate, o.rate) for m, o in zip(mixed_loads, one_loads, strict=True))
    note = f"{median(m.rate for m in mixed_loads):.1f}/s against {median(o.rate for o in one_loads):.1f}/s"
    report_target(f"mixed β ({count} values) / one β at 64 connections", "≥", 0.99, share, note)


def run_closed_loop(server: Server, requests: list[bytes], connections: int, seconds: float) -> ClosedLoopResult:
    """Sends the requests repeatedly for `seconds`. Each connection sends its next request after the previous response.

    Returns counts and latencies. Prints a line if some responses had a status other than 200, and a line if none had
    status 200.
    """
    load: ClosedLoopResult = uvloop.run(closed_loop(server.port, requests, connections, seconds))
    if load.failed:
        print(f"  {load.failed} responses had a status other than 200", flush=True)
    if not load.succeeded:
        print(f"  {NO_SUCCESS}", flush=True)
    return load
