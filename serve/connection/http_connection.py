"""What happens to bytes before they are a request, and to answers that are not taken: one connection's deadlines.

Refuses what should not reach the application: slow, malformed, oversized, or unwanted by the gate. A refusal is written
at once; what its sender still sends is dropped for a while, since closing on unread bytes would reset the connection
and take the answer away. Knows nothing about routes or images; the rules are `serve.connection.head_rules`'s.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NoReturn, cast

from starlette.types import Receive, Scope, Send

from serve.connection.deferred_start import DeferredStartProtocol
from serve.connection.error_bytes import ErrorResponse, error_response_of
from serve.connection.head_rules import PROBES, Headers, fault_of_head
from serve.connection.parser import StopParsing, parse
from serve.errors import (
    HeadTimeoutError,
    HeadTooLargeError,
    IncompleteBodyError,
    MalformedRequestError,
    SlowBodyError,
    TooManyChunksError,
    TooManyConnectionsError,
)
from serve.http.cors import cors_headers
from serve.http.request_log import access_fields, arrived_s, record, request_id_of, set_refusal
from serve.limits import ConnectionLimits
from serve.telemetry.metrics import Metrics
from tureen.errors import TureenError

Gate = Callable[[bytes, bytes], tuple[str, TureenError | None] | None]
"""Asked for each sound head, by method and path as sent: the route of what is work, and why it is refused unread."""


def protocol_class(limits: ConnectionLimits, gate: Gate, metrics: Metrics) -> type[HttpConnection]:
    """The protocol of one server, as uvicorn.Config takes it."""
    attributes = {"limits": limits, "gate": staticmethod(gate), "metrics": metrics, "probes": set(), "surplus": set()}
    return type("ServerProtocol", (HttpConnection,), attributes)


CHUNK_BYTES = 32  # that a chunk has beside its data, amply


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # the rest of a head, which has a deadline
    BODY = auto()  # the rest of a body, which has a deadline and a minimum rate
    ANSWER = auto()  # our own answer
    IDLE = auto()  # the next request of a kept connection
    LINGER = auto()  # its end: all is written, and whatever still comes is dropped


class HttpConnection(DeferredStartProtocol):
    """One connection. The attributes without values are `protocol_class`'s to give."""

    limits: ConnectionLimits
    gate: Gate
    metrics: Metrics
    probes: set[HttpConnection]  # connections beyond the limit, each for one probe
    surplus: set[HttpConnection]  # connections beyond both limits, about to end

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.HEAD
        self._since_s = self.loop.time()  # of the phase
        self._received = 0  # bytes of the head beyond its first read, of the body, or dropped
        self._chunks = 0
        self._framing = 0  # bytes of the body that are chunks' sizes and extensions, or trailers
        self._begun = 0  # requests in this read
        self._path = ""
        self._is_refused = False  # the request under way, which is not the application's
        self._is_last = False  # no further request is read from this connection
        self._unsent_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) - len(self.probes) < self.limits.max_connections:
            super().connection_made(transport)
        elif len(self.probes) < self.limits.max_probe_connections:
            super().connection_made(transport)
            self.probes.add(self)
        elif len(self.surplus) < self.limits.max_connections:
            self.transport = transport
            self.surplus.add(self)
            self._write(error_response_of(TooManyConnectionsError()), keep_alive=False)
            self._linger()
        else:
            self.transport = transport
            transport.abort()
            return
        # The first time at random: connections that began together must not all be dealt with at one moment.
        self._timer = self.loop.call_later(self.limits.tick_s * random.random(), self._look_at_clock)  # noqa: S311

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.probes.discard(self)
        self.surplus.discard(self)
        if not self.is_started:
            self._unstarted = None
            self._count(error_response_of(IncompleteBodyError(), self._path), self._scope())
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_last and self._phase is not Phase.BODY:
            self._drop(len(data))
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
            self._forget_request()
        self._begun = 0
        phase, received = self._phase, self._received
        error = parse(self, data)
        if error is not None and self._phase is not Phase.LINGER and not self._is_last:
            self._fail(error)
        if self._phase is phase and not self._begun:
            self._limit_overhead(len(data) - (self._received - received))

    def _limit_overhead(self, count: int) -> None:
        """So many more bytes came that are no body: of a head, or of what frames a body, which the parser gathers."""
        limit = self.limits.max_head_bytes
        if self._phase is Phase.HEAD:
            self._received += count
            if self._received > limit:
                self._fail(HeadTooLargeError(f"the request's head has more than {limit:,} bytes, the limit"))
        elif self._phase is Phase.BODY:
            self._framing += count
            if self._framing > limit + CHUNK_BYTES * self._chunks:
                self._fail(MalformedRequestError("too much of the body is chunk extensions or trailers: send it bare"))

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._begun += 1
        if self._is_last:
            raise StopParsing
        if self._begun > self.limits.max_pipelined:
            self._fail_and_stop(MalformedRequestError("too many requests at a time on one connection"))
        self._enter(Phase.HEAD)
        self._forget_request()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.HEAD:  # a trailer must not pass for a header that was looked at
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        path = self.url.partition(b"?")[0]
        self._path = path.decode("latin-1")
        self.scope["method"] = method.decode("ascii")
        if (fault := fault_of_head(self.limits, version, self.url, self.headers)) is not None:
            self._fail_and_stop(fault)
        if self.parser.should_upgrade():
            if method == b"CONNECT":
                self._fail_and_stop(MalformedRequestError("CONNECT is for proxies"))
            self._begun -= 1  # it comes again, without the offer
            return
        has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and int(value)) for name, value in self.headers
        )
        arrived_s(self._scope())
        if self in self.probes and path not in PROBES:
            self._enter(Phase.BODY)
            self._refuse(error_response_of(TooManyConnectionsError(), self._path))
            self._give_up_reserve()
            return
        if (work := self.gate(method, path)) is not None:
            route, error = work
            access_fields(self._scope())["route"] = route
            if error is not None:
                self._enter(Phase.BODY)
                self._refuse(error_response_of(error, self._path))
                return
        super().on_headers_complete()
        self._enter(Phase.BODY)
        self.cycle.default_headers = self._default_headers()
        cast(Any, self.cycle).transport = _LingeringTransport(self)
        # A client that waits for 100 and gets another answer may send its body or not: nobody could tell what is next.
        if (has_body and self.expect_100_continue) or self in self.probes:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self.limits.max_chunks:
            self._fail_and_stop(TooManyChunksError(self.limits.max_chunks))

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._is_refused or self.cycle.response_complete:
            if self._received > self.limits.max_swallowed_bytes:
                self._close()
                raise StopParsing
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is Phase.LINGER or self.parser.should_upgrade():
            return
        if self._is_refused or self.cycle.response_complete:
            self._enter(Phase.IDLE)
        else:
            super().on_message_complete()
            self._enter(Phase.ANSWER)
            self._is_last |= not self.cycle.keep_alive

    def on_response_complete(self) -> None:
        if self._phase is Phase.LINGER:
            self.pipeline.clear()
            return
        if self._phase is Phase.ANSWER and not self.pipeline:
            self._enter(Phase.IDLE)
        super().on_response_complete()

    # Deadlines

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since_s = self.loop.time()
        self._received = 0

    def _look_at_clock(self) -> None:
        now = self.loop.time()
        elapsed = now - self._since_s
        limits = self.limits
        self._timer = self.loop.call_later(limits.tick_s, self._look_at_clock)
        is_unsent = self.transport.get_write_buffer_size() > 0
        if self._unsent_since_s is not None and now - self._unsent_since_s > limits.send_timeout_s:
            self.transport.abort()
        elif self._phase in (Phase.HEAD, Phase.BODY) and self.flow.read_paused:
            self._since_s += limits.tick_s  # paused by us, since the application has not yet taken what is here
        elif self._phase is Phase.HEAD:
            timeout_s = min(limits.head_timeout_s, limits.probe_timeout_s if self in self.probes else math.inf)
            if elapsed > timeout_s:
                self._fail(HeadTimeoutError(timeout_s))
        elif self._phase is Phase.BODY:
            if limits.is_late(elapsed, self._received):
                self._fail(SlowBodyError(limits.min_body_rate, limits.body_timeout_s))
        elif self._phase is Phase.IDLE:
            if is_unsent and elapsed > limits.send_timeout_s:
                self.transport.abort()
            elif elapsed > self.timeout_keep_alive:
                self.timeout_keep_alive_handler()
        elif self._phase is Phase.LINGER and elapsed > (limits.send_timeout_s if is_unsent else limits.linger_s):
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.get_write_buffer_size():  # else closing would wait for the client to take it, for ever
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        self._unsent_since_s = self.loop.time()
        if self.flow is not None:
            super().pause_writing()

    def resume_writing(self) -> None:
        self._unsent_since_s = None
        if self.flow is not None:
            super().resume_writing()

    # Refusals

    def _refuse(self, refusal: ErrorResponse) -> None:
        """Answer a sound head, in its turn, without the application; its body is dropped as it comes."""
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        keep_alive = (
            self.parser.should_keep_alive()
            and not self.server_state.is_draining
            and self not in self.probes
            and not self.expect_100_continue
            and sum(lengths) <= self.limits.max_swallowed_bytes
        )
        if self._is_answering():  # requests before this one, whose answers come first
            self.app = self._refused(refusal)
            super().on_headers_complete()
            self.app = self.config.loaded_app
            self.cycle.keep_alive &= keep_alive
            self.cycle.default_headers = self._default_headers()
            cast(Any, self.cycle).transport = _LingeringTransport(self)
            return
        if self.flow.write_paused:  # so many answers lie here unread that one more would only fill memory
            self._is_last = True
            self.transport.abort()
            raise StopParsing
        self._write(refusal, keep_alive=keep_alive)
        self._is_refused = True
        if not keep_alive:
            self._linger()

    def _refused(self, refusal: ErrorResponse) -> Any:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            self._count(refusal, scope)
            await refusal.send(send, request_id_of(scope))

        return answer

    def _fail(self, error: TureenError) -> None:
        """Answer what cannot be a request, where it is its turn to be answered, and end the connection."""
        self._is_last = True
        if self._phase is Phase.LINGER:
            return
        if self._phase is Phase.BODY:
            self._fail_in_body(error)
        elif self._is_answering():  # requests before this one; the connection ends with the last of their answers
            self.cycle.keep_alive = False
            self._enter(Phase.ANSWER)
        else:
            self._write(error_response_of(error, self._path), keep_alive=False)
            self._linger()

    def _fail_in_body(self, error: TureenError) -> None:
        is_answered = self._is_refused or self.cycle.response_started
        if is_answered or self.pipeline:  # or not yet its turn
            self._close()
            return
        refusal = error_response_of(error, self._path)
        if self.is_started:
            set_refusal(self._scope(), refusal.kind)
        self._write(refusal, keep_alive=False, is_counted=not self.is_started)
        self._unstarted = None
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self._linger()

    def _fail_and_stop(self, error: TureenError) -> NoReturn:
        self._fail(error)
        raise StopParsing

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _write(self, refusal: ErrorResponse, *, keep_alive: bool, is_counted: bool = True) -> None:
        scope = self._scope()
        answer = refusal.to_bytes(
            request_id_of(scope),
            self._default_headers(),
            keep_alive=keep_alive,
            is_head=scope.get("method") == "HEAD",
        )
        self.transport.write(answer)
        if is_counted:
            self._count(refusal, scope)

    def _default_headers(self) -> Headers:
        """What every answer to the request has, whoever makes it."""
        headers = cast(Headers, self._scope()["headers"])
        return [*self.server_state.default_headers, *cors_headers(self.limits.cors_origins, headers)]

    def _count(self, refusal: ErrorResponse, scope: Scope) -> None:
        access_fields(scope)["code"] = refusal.kind.code
        record(self.metrics, scope, refusal.kind.status, self.loop.time() - self._since_s)

    def _scope(self) -> Scope:
        """The request's, as far as it was read."""
        if self.scope is None:
            self.scope = cast(Any, {"headers": []})
        return cast(Scope, self.scope)

    def _forget_request(self) -> None:
        self.scope = cast(Any, None)
        self._path = ""
        self._is_refused = False
        self._chunks = 0
        self._framing = 0

    # The end

    def close_after_answer(self) -> None:
        """Close; not at once where that would take the answer away from a client that is still sending."""
        if self._phase is Phase.BODY or self._received:
            self._linger()
        else:
            self.transport.close()

    def _give_up_reserve(self) -> None:
        """Leave the place to a probe; this connection has its answer."""
        self.probes.discard(self)
        self.connections.discard(self)
        self.surplus.add(self)

    def _linger(self) -> None:
        self._is_last = True
        if self.transport.is_closing():
            return
        if self.flow is not None:
            self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._enter(Phase.LINGER)

    def _close(self) -> None:
        self._is_last = True
        self.transport.close()
        self._enter(Phase.LINGER)

    def _drop(self, count: int) -> None:
        self._received += count
        if self._received > self.limits.max_swallowed_bytes:
            self._close()


class _LingeringTransport:
    """The transport as an answer under way uses it."""

    def __init__(self, protocol: HttpConnection) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.close_after_answer()
