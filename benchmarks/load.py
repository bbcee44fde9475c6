"""Generates HTTP load on the loopback interface from one thread, and measures the latency of each response.

The load generator shares the cores with the server, so it is written to use little CPU time. There are two kinds of
load. Closed loop: each connection sends its next request when the previous response is complete. This measures the
capacity of a server. Open loop: requests are sent at planned, random times, and latency counts from the planned time.
This measures the behaviour under overload. Knows requests only as bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.targets import percentile

HOST = "127.0.0.1"
NO_RESPONSE = 0  # status of a request whose connection closed before a response
NOT_SENT = -1  # status of a request that found no free connection
NO_SUCCESS = "no response of status 200 after the warm-up"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Response:
    """An HTTP response. head: the status line and the headers, in lower case. body: empty if the response has none."""

    status: int
    head: bytes = b""
    body: bytes = b""


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time. Uses callbacks, which cost less than tasks."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._callback: Callable[[Response], None] | None = None
        self.is_open = False

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Returns an open connection. Raises OSError if no server listens on the port."""
        return (await asyncio.get_running_loop().create_connection(cls, HOST, port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment] # the transport of uvloop does not derive from asyncio.Transport
        self.is_open = True

    def send(self, request: bytes, callback: Callable[[Response], None]) -> None:
        """Sends a complete request, and calls `callback` with its response.

        If the connection ends before the response is complete, calls `callback` with a Response of status NO_RESPONSE.
        """
        self._callback = callback
        if self.is_open:
            self.transport.write(request)
        else:
            self.connection_lost(None)

    def request(self, request: bytes) -> asyncio.Future[Response]:
        """Sends a complete request. Returns a future of its response.

        If no response arrives, the future has a Response of status NO_RESPONSE.
        """
        response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.send(request, response.set_result)
        return response

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
        self._call_back(Response(int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._call_back(Response(NO_RESPONSE))

    def close(self) -> None:
        """Aborts the connection immediately. A request in progress then has no response."""
        self.is_open = False
        self.transport.abort()

    def abandon(self) -> None:
        """Aborts the connection immediately. Does not call the callback of a request in progress."""
        self._callback = None
        self.close()

    def _call_back(self, response: Response) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(response)


@dataclass(frozen=True)
class ClosedLoopResult:
    """Counts and latencies of a closed loop.

    The warm-up does not count, except in cpu_s and responses. latencies: for each response with status 200, the seconds
    from sending the request to the complete response.
    """

    succeeded: int  # responses with status 200
    failed: int  # responses with another status, and requests without a response
    seconds: float  # duration of the measurement
    latencies: list[float]
    cpu_s: float = 0.0  # CPU seconds of the load generator, warm-up included
    responses: int = 0  # responses of any status, warm-up included

    @property
    def rate(self) -> float:
        """Responses with status 200 per second."""
        return self.succeeded / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Returns the percentile `percent` of the latencies in ms; NaN if there are none. percent: 0 to 100."""
        return 1000 * percentile(self.latencies, percent)

    def __str__(self) -> str:
        if not self.succeeded:
            return f"{NO_SUCCESS}, {self.failed} failed"
        p50, p99 = self.percentile_ms(50), self.percentile_ms(99)
        return f"{self.rate:7.0f} requests/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   {self.failed} failed"


async def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> ClosedLoopResult:
    """Sends the requests in turn over `connections` for `seconds`. Returns the counts and latencies.

    A warm-up of `seconds` / 10 comes first and does not count. If the server closes a connection, opens another.
    """
    turns = itertools.cycle(requests)
    latencies: list[float] = []
    failed = responses = 0
    measure_from = time.perf_counter() + seconds / 10
    end = measure_from + seconds

    async def client() -> None:
        nonlocal failed, responses
        connection = await Connection.open(port)
        while (start := time.perf_counter()) < end:
            if not connection.is_open:
                connection = await Connection.open(port)
            response = await connection.request(next(turns))
            responses += response.status != NO_RESPONSE
            if start < measure_from:
                continue
            if response.status == 200:
                latencies.append(time.perf_counter() - start)
            else:
                failed += 1
        connection.close()

    cpu_s = time.process_time()
    await asyncio.gather(*(client() for _ in range(connections)))
    return ClosedLoopResult(len(latencies), failed, seconds, latencies, time.process_time() - cpu_s, responses)


@dataclass(frozen=True)
class TimedResponse:
    """The response to one request of an open loop.

    intended_s, completed_s: the planned time of the request, and the time of its response, in seconds since the start
    of the loop.
    """

    intended_s: float
    completed_s: float
    response: Response

    @property
    def latency_s(self) -> float:
        return self.completed_s - self.intended_s


@dataclass
class OpenLoopResult:
    """The responses of an open loop, and the delays of the load generator.

    rate: planned requests per second. seconds: duration in which requests are sent. connections: number of open
    connections. cpu_s: CPU seconds of the load generator.
    """

    rate: float
    seconds: float
    responses: list[TimedResponse] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)  # of each request: time of writing − intended time
    connections: int = 0
    cpu_s: float = 0.0

    @property
    def goodput(self) -> float:
        """Responses with status 200 per second.

        Responses after `seconds` do not count, because the loop sends no requests then. The first tenth of the time
        does not count, because the queue of the server is empty at the start.
        """
        start = self.seconds / 10
        good = sum(r.response.status == 200 and start <= r.completed_s <= self.seconds for r in self.responses)
        return good / (self.seconds - start)

    def of_status(self, *statuses: int) -> list[TimedResponse]:
        """Returns the responses with one of these statuses."""
        return [timed for timed in self.responses if timed.response.status in statuses]


async def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, *, max_connections: int = 4000, seed: int = 0
) -> OpenLoopResult:
    """Sends the requests in turn for `seconds`, at the random times of a Poisson process. Returns all responses.

    rate: mean requests per second; 0 sends none. Each request uses an idle connection, or else opens one. If
    `max_connections` are in use, the request is not sent, and its response has the status NOT_SENT. seed: of the random
    times.
    """
    count = int(rate * seconds)
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist() if count else []
    load = OpenLoopResult(rate, seconds)
    idle: list[Connection] = []
    all_completed = asyncio.get_running_loop().create_future()
    cpu_s, started = time.process_time(), time.perf_counter()

    def record(intended_s: float, response: Response, connection: Connection | None) -> None:
        load.responses.append(TimedResponse(intended_s, time.perf_counter() - started, response))
        if connection is not None and connection.is_open:
            idle.append(connection)
        elif connection is not None:
            load.connections -= 1
        if len(load.responses) == count:
            all_completed.set_result(None)

    def send(connection: Connection, request: bytes, intended_s: float) -> None:
        load.late_s.append(time.perf_counter() - started - intended_s)
        connection.send(request, lambda response: record(intended_s, response, connection))

    async def open_and_send(request: bytes, intended_s: float) -> None:
        try:
            connection = await Connection.open(port)
        except OSError:
            load.connections -= 1
            record(intended_s, Response(NO_RESPONSE), None)
            return
        send(connection, request, intended_s)

    opening: set[asyncio.Task[None]] = set()
    for intended_s, request in zip(times, itertools.cycle(requests), strict=False):
        if (wait_s := started + intended_s - time.perf_counter()) > 0:
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
            record(intended_s, Response(NOT_SENT), None)
    load.cpu_s = time.process_time() - cpu_s
    if times:
        await all_completed
    for connection in idle:
        connection.close()
    return load
