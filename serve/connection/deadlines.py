"""Decides when the client of a connection is too slow. `serve.connection.http_connection` applies the decisions."""

from __future__ import annotations

import math
from enum import Enum, auto

from serve.errors import HeadTimeoutError, ServeError, SlowBodyError
from serve.limits import ConnectionLimits


class Phase(Enum):
    """The event that a connection waits for. The deadlines depend on the phase."""

    HEAD = auto()  # the rest of a head, before its deadline
    BODY = auto()  # the rest of a body, before its deadline and at a minimum rate
    RESPONSE = auto()  # the response of the application
    IDLE = auto()  # the next request of a kept-alive connection
    LINGER = auto()  # the close by the client: the response is written, further bytes are discarded


def late_error(
    limits: ConnectionLimits, phase: Phase, *, elapsed_s: float, received: int, is_probe: bool
) -> ServeError | None:
    """Returns the error of a request whose head or body arrives too slowly; None if head and body arrive in time.

    elapsed_s: seconds since the start of the phase. received: bytes of the body in this phase. is_probe: whether the
    connection exceeds max_connections, so that it may send only one health probe.
    """
    if phase is Phase.HEAD:
        timeout_s = min(limits.head_timeout_s, limits.probe_timeout_s if is_probe else math.inf)
        return HeadTimeoutError(timeout_s) if elapsed_s > timeout_s else None
    if phase is Phase.BODY and limits.is_late(elapsed_s, received):
        return SlowBodyError(limits.min_body_rate, limits.body_timeout_s)
    return None


def must_abort(limits: ConnectionLimits, phase: Phase, *, elapsed_s: float, is_unsent: bool) -> bool:
    """Returns whether the client takes too long to read the response or to close the connection.

    The server must then end the connection. elapsed_s: seconds since the start of the phase. is_unsent: whether the
    client has not received all bytes of a response.
    """
    if phase is Phase.LINGER:
        return elapsed_s > (limits.send_timeout_s if is_unsent else limits.linger_s)
    return phase is Phase.IDLE and is_unsent and elapsed_s > limits.send_timeout_s
