"""Measures the latency of a normal client while hundreds of clients send their bodies byte by byte."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

import uvloop

from benchmarks.load import ClosedLoopResult, Connection, Response, closed_loop
from benchmarks.server_process import run_tureen
from benchmarks.targets import median, ratio, report_target
from benchmarks.workload import Workload, classify_requests

SLOW_CLIENTS = 500
BYTE_INTERVAL_S = 1.0
BODY_BYTES = 100_000
HEAD = (
    f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
).encode()


def measure_slow_clients(workload: Workload) -> None:
    """Prints the p99 latency of a normal client beside SLOW_CLIENTS slow clients, as a ratio to the p99 without them.

    Measurements with and without the slow clients alternate.
    """
    requests = classify_requests(workload.images)
    ratios: list[float] = []
    failed = sent = 0
    with run_tureen(workload.bundle.path, *workload.server_flags) as server:
        uvloop.run(closed_loop(server.port, requests, 1, 1))
        for _ in range(workload.rounds):
            without: ClosedLoopResult = uvloop.run(closed_loop(server.port, requests, 1, workload.seconds))
            beside, statuses, held_s = uvloop.run(load_beside_slow_clients(server.port, requests, workload.seconds))
            print(f"  without {without}\n  beside  {beside}", flush=True)
            longest = f"{max(held_s):.1f} s" if held_s else "none ended"
            counts = ", ".join(f"{count} × {status or 'reset'}" for status, count in sorted(statuses.items()))
            print(f"  {SLOW_CLIENTS} slow clients: {counts or 'no response'}; longest connection {longest}", flush=True)
            ratios.append(ratio(beside.percentile_ms(99), without.percentile_ms(99)))
            failed += beside.failed
            sent += beside.failed + beside.succeeded
    report_target(f"{SLOW_CLIENTS} slow clients: p99 of a normal client / without", "≤", 1.5, median(ratios))
    refused = failed if sent else math.nan
    report_target(f"{SLOW_CLIENTS} slow clients: refusals of a normal client", "=", 0, refused, f"of {sent:,}")


async def load_beside_slow_clients(
    port: int, requests: list[bytes], seconds: float
) -> tuple[ClosedLoopResult, Counter[int], list[float]]:
    """Sends requests over one connection for `seconds` while SLOW_CLIENTS slow clients are connected.

    Returns three things: the counts and latencies of the one connection, the number of responses to slow clients by
    status, and the duration of each slow connection in seconds.
    """
    statuses: Counter[int] = Counter()
    held_s: list[float] = []

    async def trickle() -> None:
        while True:
            try:
                connection = await Connection.open(port)
            except OSError:
                await asyncio.sleep(BYTE_INTERVAL_S)
                continue
            started, is_done = time.perf_counter(), asyncio.Event()

            def finish(response: Response, started: float = started, is_done: asyncio.Event = is_done) -> None:
                statuses[response.status] += 1
                held_s.append(time.perf_counter() - started)
                is_done.set()

            try:
                connection.send(HEAD, finish)
                while not is_done.is_set() and connection.is_open:
                    connection.transport.write(b"\xff")
                    await asyncio.sleep(BYTE_INTERVAL_S)
            finally:
                connection.abandon()

    tasks = [asyncio.create_task(trickle()) for _ in range(SLOW_CLIENTS)]
    await asyncio.sleep(2 * BYTE_INTERVAL_S)  # until each slow client holds a connection, if it can get one
    load = await closed_loop(port, requests, 1, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return load, statuses, held_s
