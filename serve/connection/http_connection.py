"""Applies the limits and deadlines of one HTTP/1.1 connection, and refuses requests before the application starts.

Refuses slow, malformed and oversized requests, and requests that fail the admission check. A refusal is an error
response that the connection writes itself. The connection writes the refusal immediately, then discards further bytes
for a while: closing a socket with unread bytes resets the connection, and the client would lose the response. Knows
nothing about routes or images. `serve.connection.request_rules` and `serve.connection.deadlines` have the rules.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, cast

from starlette.types import Receive, Scope, Send

from serve.connection.deadlines import Phase, late_error, must_abort
from serve.connection.deferred_start import DeferredStartProtocol
from serve.connection.error_bytes import ErrorResponse, error_response_of
from serve.connection.impatience import Impatience
from serve.connection.parser import StopParsing, parse
from serve.connection.request_rules import PROBES, Headers, chunk_error, content_length, has_body, head_error
from serve.errors import (
    HeadTooLargeError,
    IncompleteBodyError,
    MalformedRequestError,
    TooManyConnectionsError,
)
from serve.http.body_stream import DISCONNECTION, Disconnection
from serve.http.cors import cors_headers
from serve.http.request_log import access_fields, arrived_s, record, request_id_of, set_refusal
from serve.limits import ConnectionLimits
from serve.telemetry.metrics import Metrics
from tureen.errors import TureenError

AdmissionCheck = Callable[[bytes, bytes], tuple[str, TureenError | None] | None]
"""Decides about a request before its body is read. The arguments are the method and the raw path of a valid head.
Returns None for a request that needs no permit. Otherwise returns the route of the request and an error. The error is
None if the request may continue.
"""


class HttpConnection(DeferredStartProtocol):
    """One HTTP/1.1 connection. `serve.connection.uvicorn_config` creates a subclass for each server.

    The subclass sets the class attributes that are declared here without a value.
    """

    limits: ConnectionLimits
    check_admission: AdmissionCheck
    metrics: Metrics
    probes: set[HttpConnection]  # connections beyond max_connections, each for one health probe
    surplus: set[HttpConnection]  # connections beyond both limits, which get a 503 and end
    delayed: set[HttpConnection]  # connections whose client waits for a delayed refusal

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.HEAD
        self._since_s = self.loop.time()  # start of the phase
        self._received = 0  # in this phase: bytes of the head after its first read, of the body, or discarded
        self._chunks = 0
        self._framing = 0  # bytes of chunk headers, chunk extensions and trailers
        self._started_in_read = 0  # requests that began in this read
        self._path = ""
        self._is_refused = False  # the current request has its refusal, and the application never sees it
        self._is_last = False  # no further request is parsed
        self._unsent_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._disconnection = Disconnection()
        self._impatience = Impatience(self.limits)
        self._running: Any = None  # the cycle of the task that started last; `cycle` is that of the last request
        self._send_delayed: Callable[[], None] | None = None  # sends the refusal that waits, if there is one

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
        # The first delay is random, so that connections that opened together are not all checked at one moment.
        self._timer = self.loop.call_later(self.limits.tick_s * random.random(), self._check_deadlines)  # noqa: S311

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.probes.discard(self)
        self.surplus.discard(self)
        self.delayed.discard(self)
        self._send_delayed = None
        if not self.is_started:
            self._unstarted = None
            self._count(error_response_of(IncompleteBodyError(), self._path), self._scope())
        super().connection_lost(exc)
        self._disconnection.set()
        self.pipeline.clear()
        for cycle in filter(None, (self.cycle, self._running)):
            cycle.disconnected = True  # uvicorn sets it only for the last request, and would respond to the others
            cycle.message_event.set()
            cycle.body = bytearray()  # the garbage collector, which runs rarely, frees the cycle

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_last and self._phase is not Phase.BODY:
            self._discard(len(data))
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
            self._reset_request()
        self._started_in_read = 0
        phase, received = self._phase, self._received
        error = parse(self, data)
        if error is not None and self._phase is not Phase.LINGER and not self._is_last:
            self._fail(error)
        if self._phase is phase and not self._started_in_read:
            self._limit_overhead(len(data) - (self._received - received))

    def _limit_overhead(self, count: int) -> None:
        """Counts `count` received bytes of a head or of the framing of a body, such as chunk headers.

        Sends an error and ends the connection if there are too many such bytes.
        """
        if self._phase is Phase.HEAD:
            self._received += count
            limit = self.limits.max_head_bytes
            if self._received > limit:
                self._fail(HeadTooLargeError(f"the request head has more than {limit:,} bytes, the limit"))
        elif self._phase is Phase.BODY:
            self._framing += count
            if (error := chunk_error(self.limits, chunks=self._chunks, framing=self._framing)) is not None:
                self._fail(error)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._started_in_read += 1
        self._end_delay()  # before the response to a pipelined request
        if self._is_last:
            raise StopParsing
        if self._started_in_read > self.limits.max_pipelined:
            self._fail_and_stop(
                MalformedRequestError(f"more than {self.limits.max_pipelined} pipelined requests: wait for responses")
            )
        self._enter(Phase.HEAD)
        self._reset_request()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.HEAD:  # a trailer must not become a header that bypasses head_error
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        path = self.url.partition(b"?")[0]
        self._path = path.decode("latin-1")
        self.scope["method"] = method.decode("ascii")
        if (invalid := head_error(self.limits, version, self.url, self.headers)) is not None:
            self._fail_and_stop(invalid)
        if self.parser.should_upgrade():
            if method == b"CONNECT":
                self._fail_and_stop(MalformedRequestError("CONNECT is not supported: this server is no proxy"))
            self._started_in_read -= 1  # the head is parsed again without the upgrade
            return
        arrived_s(self._scope())
        if self in self.probes and path not in PROBES:
            self._enter(Phase.BODY)
            self._refuse(error_response_of(TooManyConnectionsError(), self._path))
            self._leave_probes()
            return
        if (admission := self.check_admission(method, path)) is not None:
            route, error = admission
            access_fields(self._scope())["route"] = route
            if error is not None:
                self._enter(Phase.BODY)
                self._refuse(error_response_of(error, self._path), may_delay=True)
                return
        cast(dict[str, Any], self.scope)[DISCONNECTION] = self._disconnection
        super().on_headers_complete()
        self._enter(Phase.BODY)
        self.cycle.default_headers = self._default_headers()
        cast(Any, self.cycle).transport = _LingeringTransport(self)
        # A client that waits for "100 Continue" and gets another response may or may not send its body. So the bytes
        # that follow are ambiguous.
        if (self.expect_100_continue and has_body(self.headers)) or self in self.probes:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if (error := chunk_error(self.limits, chunks=self._chunks, framing=self._framing)) is not None:
            self._fail_and_stop(error)

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._is_refused or self.cycle.response_complete:
            if self._received > self.limits.max_discarded_bytes:
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
            self._enter(Phase.RESPONSE)
            self._is_last |= not self.cycle.keep_alive

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._phase is Phase.LINGER:
            self.pipeline.clear()
            return
        if self._phase is Phase.RESPONSE and not self.pipeline:
            self._enter(Phase.IDLE)
        super().on_response_complete()

    # Deadlines

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since_s = self.loop.time()
        self._received = 0

    def _check_deadlines(self) -> None:
        now = self.loop.time()
        elapsed = now - self._since_s
        limits = self.limits
        self._timer = self.loop.call_later(limits.tick_s, self._check_deadlines)
        error = late_error(
            limits, self._phase, elapsed_s=elapsed, received=self._received, is_probe=self in self.probes
        )
        is_unsent = self.transport.get_write_buffer_size() > 0
        if self._unsent_since_s is not None and now - self._unsent_since_s > limits.send_timeout_s:
            self.transport.abort()
        elif self._phase in (Phase.HEAD, Phase.BODY) and self.flow.read_paused:
            self._since_s += limits.tick_s  # the server paused reading, until the application consumes the buffer
        elif error is not None:
            self._fail(error)
        elif must_abort(limits, self._phase, elapsed_s=elapsed, is_unsent=is_unsent):
            self.transport.abort()
        elif self._phase is Phase.IDLE and elapsed > self.timeout_keep_alive:
            self.timeout_keep_alive_handler()

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.get_write_buffer_size():  # otherwise close() would wait until the client reads
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

    def _refuse(self, refusal: ErrorResponse, *, may_delay: bool = False) -> None:
        """Sends the refusal of a request with a valid head, after the responses to earlier requests.

        The application does not receive the request. The connection discards the body of the request. If the client
        does not read responses, aborts the connection instead and raises StopParsing. may_delay: whether the refusal is
        delayed for a client that repeats its request too early. Meanwhile the connection reads nothing.
        """
        keep_alive = (
            self.parser.should_keep_alive()
            and not self.server_state.is_draining
            and self not in self.probes
            and not self.expect_100_continue
            and content_length(self.headers) <= self.limits.max_discarded_bytes
        )
        if self._has_open_response():  # earlier pipelined requests, whose responses come first
            self.app = self._refusing_app(refusal)
            super().on_headers_complete()
            self.app = self.config.loaded_app
            self.cycle.keep_alive &= keep_alive
            self.cycle.default_headers = self._default_headers()
            cast(Any, self.cycle).transport = _LingeringTransport(self)
            return
        if self.flow.write_paused:  # the client does not read its responses: another one would only fill memory
            self._is_last = True
            self.transport.abort()
            raise StopParsing
        self._is_refused = True
        self._count(refusal, self._scope())
        delay_s = 0.0
        if may_delay and not self.server_state.is_draining:
            delay_s = self._impatience.delay_s(
                now_s=self.loop.time(), retry_after_s=refusal.retry_after_s, delayed=len(self.delayed)
            )
        if not delay_s:
            self._send_refusal(refusal, keep_alive=keep_alive)
            return
        self.delayed.add(self)
        self._send_delayed = partial(self._send_refusal, refusal, keep_alive=keep_alive)
        self.flow.pause_reading()
        self.loop.call_later(delay_s, self._end_delay, self._send_delayed)

    def _send_refusal(self, refusal: ErrorResponse, *, keep_alive: bool) -> None:
        self._write(refusal, keep_alive=keep_alive, is_counted=False)
        if not keep_alive:
            self._linger()

    def _end_delay(self, expected: Callable[[], None] | None = None) -> None:
        """Sends the refusal that waits, and reads again. Does nothing if none waits.

        expected: the function that sends it; None: any. So the timer of an earlier refusal has no effect.
        """
        send = self._send_delayed
        if send is None or expected not in (None, send):
            return
        self.delayed.discard(self)
        self._send_delayed = None
        self.flow.resume_reading()
        if not self.transport.is_closing():
            send()

    def shutdown(self) -> None:
        self._end_delay()
        super().shutdown()

    def _refusing_app(self, refusal: ErrorResponse) -> Any:
        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            self._count(refusal, scope)
            await refusal.send(send, request_id_of(scope))

        return refuse

    def _fail(self, error: TureenError) -> None:
        """Ends the connection because of an invalid or late request.

        Sends the error as the response. While a response to an earlier request is incomplete, sends no error, and ends
        the connection after that response.
        """
        self._is_last = True
        if self._phase is Phase.LINGER:
            return
        if self._phase is Phase.BODY:
            self._fail_in_body(error)
        elif self._has_open_response():  # of earlier requests: the connection ends after the last response
            self.cycle.keep_alive = False
            self._enter(Phase.RESPONSE)
        else:
            self._write(error_response_of(error, self._path), keep_alive=False)
            self._linger()

    def _fail_in_body(self, error: TureenError) -> None:
        has_response = self._is_refused or self.cycle.response_started
        if has_response or self.pipeline:  # in the pipeline: earlier responses are still open
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

    def _has_open_response(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _write(self, refusal: ErrorResponse, *, keep_alive: bool, is_counted: bool = True) -> None:
        scope = self._scope()
        data = refusal.to_bytes(
            request_id_of(scope),
            self._default_headers(),
            keep_alive=keep_alive,
            is_head=scope.get("method") == "HEAD",
        )
        self.transport.write(data)
        if is_counted:
            self._count(refusal, scope)

    def _default_headers(self) -> Headers:
        """Returns the headers that every response to the current request has: those of uvicorn and of CORS."""
        headers = cast(Headers, self._scope()["headers"])
        return [*self.server_state.default_headers, *cors_headers(self.limits.cors_origins, headers)]

    def _count(self, refusal: ErrorResponse, scope: Scope) -> None:
        access_fields(scope)["code"] = refusal.kind.code
        record(self.metrics, scope, refusal.kind.status, self.loop.time() - self._since_s)

    def _scope(self) -> Scope:
        """Returns the ASGI scope of the current request. Before the head is complete, the scope may lack keys."""
        if self.scope is None:
            self.scope = cast(Any, {"headers": []})
        return cast(Scope, self.scope)

    def _reset_request(self) -> None:
        self.scope = cast(Any, None)
        self._path = ""
        self._is_refused = False
        self._chunks = 0
        self._framing = 0

    # The end

    def close_after_response(self) -> None:
        """Closes the connection after the last response. Called by uvicorn.

        If the client still sends bytes, first discards them for at most `limits.linger_s` seconds. If the server closed
        the socket earlier, the system would reset the connection, and the client would lose the response.
        """
        if self._phase is Phase.BODY or self._received:
            self._linger()
        else:
            self.transport.close()

    def _leave_probes(self) -> None:
        """Moves this connection from the set `probes` to the set `surplus`. Another connection can then take its place.

        `probes` holds the connections beyond max_connections that may send one health probe. `surplus` holds those that
        get a 503 and end. Called when a connection in `probes` has sent a request that is not a health probe.
        """
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
        self._end_delay()  # the client receives a refusal that still waits
        self._is_last = True
        self.transport.close()
        self._enter(Phase.LINGER)

    def _discard(self, count: int) -> None:
        self._received += count
        if self._received > self.limits.max_discarded_bytes:
            self._close()


class _LingeringTransport:
    """The transport that uvicorn's code for responses uses. Its `close` calls `HttpConnection.close_after_response`."""

    def __init__(self, protocol: HttpConnection) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.close_after_response()
