"""Shuts a uvicorn server down without losing a request. Knows nothing about images, models or other processes.

A call of `DrainingServer.drain` starts these steps:

1. The server reports that it is not ready. Responses have the header `Connection: close`.
2. The server still accepts connections for the drain delay, until load balancers use other servers.
3. The server accepts the connections in the backlog and closes its listeners.
4. The server closes each connection that has no request in progress and receives no bytes for QUIET_S seconds.
5. The other connections receive their responses within the drain timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serve.connection.sockets import close_accepting, refuse_more
from serve.errors import UvicornVersionError

HANDSHAKE_S = 0.1  # within this time the handshakes that have started complete; no other may start
# The undocumented names of uvicorn that this package calls or overrides. If a method were missing, a protection would
# be lost without an error.
_USED = {
    HttpToolsProtocol: """connection_made connection_lost data_received on_message_begin on_url on_header on_body
        on_headers_complete on_message_complete on_response_complete pause_writing resume_writing shutdown
        timeout_keep_alive_handler _start_asgi_task _unset_keepalive_if_required app config connections cycle
        expect_100_continue flow headers loop parser pipeline scope server_state tasks timeout_keep_alive
        timeout_keep_alive_task transport""",
    RequestResponseCycle: """body default_headers disconnected keep_alive message_event more_body response_complete
        response_started transport waiting_for_100_continue""",
    ServerState: "connections default_headers tasks",
    uvicorn.Server: """capture_signals force_exit handle_exit run server_state should_exit shutdown startup""",
    FlowControl: "pause_reading read_paused resume_reading write_paused",
}
QUIET_S = 1.0  # a connection without bytes for this time has no request in transit

logger = logging.getLogger("tureen.serve")


def check_uvicorn(used: Mapping[type, str] = _USED) -> None:
    """Raises UvicornVersionError if the installed uvicorn lacks a method or attribute that the server uses.

    used: the names of the required methods and attributes, by class. Each must belong to the class or to its instances.
    """
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in used.items()
        for name in names.split()
        if not hasattr(owner, name) and name not in owner.__init__.__code__.co_names  # type: ignore[misc]
    ]
    if missing:
        raise UvicornVersionError(uvicorn.__version__, missing)


class DrainingState(ServerState):
    """The state that a server shares with its connections. is_draining: True after the shutdown has begun."""

    is_draining = False


class DrainingProtocol(HttpToolsProtocol):
    """A connection that a shutdown closes between two requests, and never during a request."""

    server_state: DrainingState

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.server_state.is_draining:
            self.shutdown()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.server_state.is_draining:
            self.cycle.keep_alive = False

    def drain(self) -> None:
        """Makes the response to the current request the last one of the connection, by `Connection: close`.

        Does nothing if no request is in progress, or if the head of the response is already sent.
        """
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Closes the connection when it has no request in progress and receives no bytes for QUIET_S seconds.

        uvicorn's own method closes the connection immediately, and would lose a request in transit.
        """
        self.drain()
        self.timeout_keep_alive = QUIET_S  # type: ignore[assignment] # after its next response
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(QUIET_S, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        if not self._has_unread():  # otherwise the event loop is about to deliver a request
            super().timeout_keep_alive_handler()

    def _has_unread(self) -> bool:
        if self.transport.is_closing():
            return False
        descriptor = self.transport.get_extra_info("socket").fileno()
        try:
            (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
        except OSError:  # a sandbox may forbid it
            return False
        return bool(unread)


class DrainingServer(uvicorn.Server):
    """A uvicorn server with a graceful shutdown. It accepts connections from the listeners given to `accept_from`."""

    server_state: DrainingState

    def __init__(
        self,
        config: uvicorn.Config,
        listeners: Sequence[socket.socket],
        *,
        delay_s: float,
        on_start: Callable[[], Awaitable[None]],
        on_drain: Callable[[], None],
        handles_signals: bool,
    ) -> None:
        """listeners: bound sockets. The server accepts connections from them only after a call of `accept_from`.

        on_start: awaited when the application has started. on_drain: called at the start of the shutdown. delay_s: the
        drain delay, the seconds after on_drain in which the server still accepts new connections. handles_signals:
        whether SIGTERM and SIGINT start the shutdown.
        """
        super().__init__(config)
        self.server_state = DrainingState()
        self._listeners = listeners
        self._delay_s = delay_s
        self._on_start = on_start
        self._on_drain = on_drain
        self._handles_signals = handles_signals
        self._accepting: dict[int, asyncio.AbstractServer] = {}
        self._skip_delay = asyncio.Event()

    def drain(self, *, skip_delay: bool = False) -> None:
        """Starts the shutdown. A second call, or skip_delay=True, skips the rest of the drain delay."""
        if skip_delay or self.should_exit:
            self._skip_delay.set()
        self.should_exit = True

    async def accept_from(self, numbers: set[int]) -> None:
        """Accepts connections from the listeners with these indices, and from no others.

        Connections to the other listeners wait in the backlog of the kernel. Does nothing after the shutdown has begun.
        """
        if self.server_state.is_draining:
            return
        for number in self._accepting.keys() - numbers:
            self._accepting.pop(number).close()
        for number in numbers - self._accepting.keys():
            listener = self._listeners[number].dup()  # the event loop closes the socket it listens on
            self._accepting[number] = await asyncio.get_running_loop().create_server(
                self._connection, sock=listener, backlog=self.config.backlog
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit |= self.should_exit and sig == signal.SIGINT  # a second Ctrl-C drops requests in progress
        self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        await self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if self._handles_signals:
            with super().capture_signals():
                yield
        else:
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("draining: not ready, accepting requests for another %g s", self._delay_s)
        self.server_state.is_draining = True
        self._on_drain()
        for connection in list(self.server_state.connections):
            cast(DrainingProtocol, connection).drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._delay_s):
                await self._skip_delay.wait()
        await self._stop_listening()
        await super().shutdown()
        logger.info("drained")

    async def _stop_listening(self) -> None:
        accepting = dict(self._accepting)
        for number, server in accepting.items():
            server.close()
            refuse_more(self._listeners[number])
        await asyncio.sleep(HANDSHAKE_S)
        loop = asyncio.get_running_loop()
        for number in accepting:
            for connection in close_accepting(self._listeners[number]):
                await loop.connect_accepted_socket(self._connection, connection)
        for listener in self._listeners:
            listener.close()

    def _connection(self) -> asyncio.Protocol:
        make = cast(Callable[..., Any], self.config.http_protocol_class)
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol
