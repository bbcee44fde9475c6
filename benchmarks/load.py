"""A small HTTP load generator: keep-alive connections that each send the next request when the last is answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """What came of it; latencies in seconds, from sending a request to its whole answer."""

    answered: int
    failed: int
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Requests answered with 200, a second."""
        return self.answered / self.seconds

    def __str__(self) -> str:
        p50, p99 = 1000 * np.percentile(self.latencies, [50, 99])
        return f"{self.rate:7.0f} requests/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   {self.failed} failed"


async def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send the requests in turns over as many connections for as long, after a warm-up of a tenth of it."""
    turns = itertools.cycle(requests)
    latencies: list[float] = []
    failed = 0
    measure_from = time.perf_counter() + seconds / 10
    end = measure_from + seconds

    async def connection() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            writer.write(next(turns))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if start < measure_from:
                continue
            if head.startswith(b"HTTP/1.1 200"):
                latencies.append(time.perf_counter() - start)
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    return Load(len(latencies), failed, seconds, latencies)
