"""HTTP load from one thread, cheap enough to share the server's cores, on addresses of this machine alone.

Closed loop: so many connections, each sending its next request when the last is answered; it finds what a server can
do. Open loop: requests leave at times drawn beforehand, whatever becomes of the earlier ones, and latency counts from
those times; it finds what a server does when more is asked of it. Knows requests as bytes, not what they mean.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

HOST = "127.0.0.1"
LOST = 0  # the status of a request whose connection ended without an answer
UNSENT = -1  # the status of a request for which there was no connection left
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Answer:
    """One answer; its head in lower case."""

    status: int
    head: bytes = b""
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time; calls back instead of waking a task, which is cheaper."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answered: Callable[[Answer], None] | None = None
        self.is_open = False

    @classmethod
    async def open(cls, port: int) -> Connection:
        """A new connection; raises OSError where nobody listens."""
        return (await asyncio.get_running_loop().create_connection(cls, HOST, port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment] # uvloop's is no asyncio.Transport
        self.is_open = True

    def ask(self, request: bytes, answered: Callable[[Answer], None]) -> None:
        """Send a whole request, and call back with its answer, or with one of status LOST."""
        self._answered = answered
        if self.is_open:
            self.transport.write(request)
        else:
            self.connection_lost(None)

    def answer(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a whole request; its answer, or one of status LOST."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.ask(request, answered.set_result)
        return answered

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[: end + 2]).lower()
        length = _LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < whole:
            return
        body = bytes(self._received[end + 4 : whole])
        self._received.clear()
        if b"\r\nconnection: close" in head:
            self.close()
        self._answer(Answer(int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._answer(Answer(LOST))

    def close(self) -> None:
        """End the connection at once, whatever is under way."""
        self.is_open = False
        self.transport.abort()

    def forget(self) -> None:
        """End the connection, and do not call back."""
        self._answered = None
        self.close()

    def _answer(self, answer: Answer) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(answer)


@dataclass(frozen=True)
class Load:
    """What came of a closed loop; latencies in seconds, from sending a request to its whole answer."""

    answered: int
    failed: int
    seconds: float
    latencies: list[float]
    cpu_s: float = 0.0  # that the generator itself took

    @property
    def rate(self) -> float:
        """Requests answered with 200, a second."""
        return self.answered / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that so many in a hundred stay within; not a number where nothing was answered."""
        return 1000 * float(np.percentile(self.latencies, share)) if self.latencies else float("nan")

    def __str__(self) -> str:
        p50, p99 = self.percentile_ms(50), self.percentile_ms(99)
        return f"{self.rate:7.0f} requests/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   {self.failed} failed"


async def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send the requests in turns over as many connections for as long, after a warm-up of a tenth of it.

    A connection that the server ends is opened again.
    """
    turns = itertools.cycle(requests)
    latencies: list[float] = []
    failed = 0
    measure_from = time.perf_counter() + seconds / 10
    end = measure_from + seconds

    async def client() -> None:
        nonlocal failed
        connection = await Connection.open(port)
        while (start := time.perf_counter()) < end:
            if not connection.is_open:
                connection = await Connection.open(port)
            answer = await connection.answer(next(turns))
            if start < measure_from:
                continue
            if answer.status == 200:
                latencies.append(time.perf_counter() - start)
            else:
                failed += 1
        connection.close()

    cpu_s = time.process_time()
    await asyncio.gather(*(client() for _ in range(connections)))
    return Load(len(latencies), failed, seconds, latencies, time.process_time() - cpu_s)


@dataclass(frozen=True)
class Outcome:
    """What became of one request of an open loop; times in seconds since the loop's start."""

    intended_s: float
    answered_s: float
    answer: Answer

    @property
    def latency_s(self) -> float:
        return self.answered_s - self.intended_s


@dataclass
class OpenLoad:
    """What came of an open loop, and how well the generator kept its times."""

    rate: float
    seconds: float
    outcomes: list[Outcome] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)  # how long after its time each request was written
    connections: int = 0
    cpu_s: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers with 200 that arrived while requests were being sent, a second; the queue's rest counts for nothing.

        Of the last nine tenths of the time, so that the filling of an empty queue is left out.
        """
        start = self.seconds / 10
        good = sum(o.answer.status == 200 and start <= o.answered_s <= self.seconds for o in self.outcomes)
        return good / (self.seconds - start)

    def of_status(self, *statuses: int) -> list[Outcome]:
        """The requests that were answered so."""
        return [outcome for outcome in self.outcomes if outcome.answer.status in statuses]


async def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, *, max_connections: int = 4000, seed: int = 0
) -> OpenLoad:
    """Send the requests in turns at random times (a Poisson process) of that many a second, then wait for the answers.

    A request takes an idle connection, or opens one. Where max_connections are open, it is UNSENT.
    """
    count = int(rate * seconds)
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist()
    load = OpenLoad(rate, seconds)
    idle: list[Connection] = []
    all_answered = asyncio.get_running_loop().create_future()
    cpu_s, began = time.process_time(), time.perf_counter()

    def record(intended_s: float, answer: Answer, connection: Connection | None) -> None:
        load.outcomes.append(Outcome(intended_s, time.perf_counter() - began, answer))
        if connection is not None and connection.is_open:
            idle.append(connection)
        elif connection is not None:
            load.connections -= 1
        if len(load.outcomes) == count:
            all_answered.set_result(None)

    def send(connection: Connection, request: bytes, intended_s: float) -> None:
        load.late_s.append(time.perf_counter() - began - intended_s)
        connection.ask(request, lambda answer: record(intended_s, answer, connection))

    async def open_and_send(request: bytes, intended_s: float) -> None:
        try:
            connection = await Connection.open(port)
        except OSError:
            load.connections -= 1
            record(intended_s, Answer(LOST), None)
            return
        send(connection, request, intended_s)

    opening: set[asyncio.Task[None]] = set()
    for intended_s, request in zip(times, itertools.cycle(requests), strict=False):
        if (wait_s := began + intended_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        while idle and not idle[-1].is_open:
            idle.pop()
            load.connections -= 1
        if idle:
            send(idle.pop(), request, intended_s)
        elif load.connections < max_connections:
            load.connections += 1
            task = asyncio.create_task(open_and_send(request, intended_s))
            opening.add(task)
            task.add_done_callback(opening.discard)
        else:
            record(intended_s, Answer(UNSENT), None)
    load.cpu_s = time.process_time() - cpu_s
    if times:
        await all_answered
    for connection in idle:
        connection.close()
    return load
