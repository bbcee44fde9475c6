"""Hundreds of clients that send their body byte by byte, and one normal client: what it notices of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from statistics import median

import uvloop

from benchmarks.load import Answer, Connection, Load, closed_loop
from benchmarks.server_process import serving
from benchmarks.subject import Subject, classify_requests
from benchmarks.targets import line

TRICKLERS = 500
BYTE_S = 1.0
BODY_BYTES = 100_000
HEAD = (
    f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
).encode()


def tricklers(subject: Subject) -> None:
    """The normal client's p99 with them, against without, in turns."""
    requests = classify_requests(subject.images)
    ratios: list[float] = []
    failed = asked = 0
    with serving(subject.bundle.path, *subject.server_flags) as server:
        uvloop.run(closed_loop(server.port, requests, 1, 1))
        for _ in range(subject.rounds):
            without: Load = uvloop.run(closed_loop(server.port, requests, 1, subject.seconds))
            among, ends, held_s = uvloop.run(load_among_tricklers(server.port, requests, subject.seconds))
            print(f"  without {without}\n  among   {among}", flush=True)
            longest = f"{max(held_s):.1f} s" if held_s else "none ended"
            shown = ", ".join(f"{count} × {status or 'reset'}" for status, count in sorted(ends.items()))
            print(f"  {TRICKLERS} tricklers: {shown or 'none answered'}; longest held {longest}", flush=True)
            ratios.append(among.percentile_ms(99) / without.percentile_ms(99))
            failed += among.failed
            asked += among.failed + among.answered
    line(f"{TRICKLERS} tricklers: normal client's p99 / without", "≤", 1.5, median(ratios))
    line(f"{TRICKLERS} tricklers: requests of the normal client refused", "=", 0, failed, f"of {asked:,}")


async def load_among_tricklers(
    port: int, requests: list[bytes], seconds: float
) -> tuple[Load, Counter[int], list[float]]:
    """A closed loop of one connection among tricklers; how the server ended their requests, and after how long."""
    ends: Counter[int] = Counter()
    held_s: list[float] = []

    async def trickle() -> None:
        while True:
            try:
                connection = await Connection.open(port)
            except OSError:
                await asyncio.sleep(BYTE_S)
                continue
            started, ended = time.perf_counter(), asyncio.Event()

            def end(answer: Answer, started: float = started, ended: asyncio.Event = ended) -> None:
                ends[answer.status] += 1
                held_s.append(time.perf_counter() - started)
                ended.set()

            try:
                connection.ask(HEAD, end)
                while not ended.is_set() and connection.is_open:
                    connection.transport.write(b"\xff")
                    await asyncio.sleep(BYTE_S)
            finally:
                connection.forget()

    tasks = [asyncio.create_task(trickle()) for _ in range(TRICKLERS)]
    await asyncio.sleep(2 * BYTE_S)  # until every one of them holds what it can get
    load = await closed_loop(port, requests, 1, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return load, ends, held_s
