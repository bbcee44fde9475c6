"""Defines the limits of bodies and connections, and checks the syntax of host names. Does not enforce the limits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BodyLimits:
    """The limits of a request body. max_image_bytes: of a raw image. max_request_bytes: of a form or JSON.

    max_images: number of images in one request.
    """

    max_image_bytes: int
    max_request_bytes: int
    max_images: int


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST_PATTERN = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{HOST_PATTERN.pattern}")


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of the connections to one process. Times are in seconds.

    hosts: allowed names in the Host header, without ports; None: any. cors_origins: origins whose pages may call this
    server; see `serve.http.cors`.
    """

    hosts: frozenset[str] | None = None
    cors_origins: frozenset[str] = frozenset()
    head_timeout_s: float = 10.0  # for the head of a request
    body_timeout_s: float = 30.0  # for the body of a request
    body_grace_s: float = 2.0  # at the start of a body, in which min_body_rate does not apply
    min_body_rate: int = 1024  # bytes/s
    send_timeout_s: float = 30.0  # for the client to receive a response that waits to be sent
    linger_s: float = 5.0  # after the last response, for the client to stop sending
    max_head_bytes: int = 64 * 1024  # of a request
    max_chunks: int = 65_536  # of a request body with chunked transfer encoding
    max_pipelined: int = 64  # requests in one read of the socket
    max_discarded_bytes: int = 32 * 2**20  # of a refused body; a client may read the response only after sending it
    max_connections: int = 1024  # a further connection gets 503
    max_probe_connections: int = 16  # beyond max_connections, each for one health probe
    refusal_delay_s: float = 0.2  # of a refusal to a client that repeats its request before Retry-After; 0: none
    max_delayed_refusals: int = 256  # that are being delayed; a further one is sent immediately
    probe_timeout_s: float = 2.0  # for the head of a health probe

    @property
    def tick_s(self) -> float:
        """The seconds between two checks of the deadlines. A deadline takes effect at most this much later."""
        shortest = min(self.head_timeout_s, self.body_timeout_s, self.body_grace_s, self.send_timeout_s, self.linger_s)
        return min(1.0, shortest / 2)

    def is_late(self, elapsed_s: float, received: int) -> bool:
        """Returns whether a body exceeds body_timeout_s, or arrives below min_body_rate after body_grace_s.

        received: bytes that arrived in the first elapsed_s seconds.
        """
        due = self.min_body_rate * (elapsed_s - self.body_grace_s)
        return elapsed_s > self.body_timeout_s or received < due


def is_host_name(text: str) -> bool:
    """Returns whether the text is a valid value of a Host header without a port."""
    match = HOST_PATTERN.fullmatch(text)
    return match is not None and match[2] is None


def is_origin(text: str) -> bool:
    """Returns whether the text is a valid Origin header: `null`, or a scheme, a host and optionally a port."""
    return text == "null" or _ORIGIN.fullmatch(text) is not None


def is_loopback(address: str) -> bool:
    """Returns whether only this machine can connect to the address: a loopback address or "localhost"."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def trusted_hosts(allowed: Iterable[str] | None, listening_on: str) -> frozenset[str] | None:
    """Returns the names that the Host header of a request may have; None if any name is allowed.

    allowed: the value of --allowed-hosts; "*" allows any name. If `allowed` is None, a server on loopback allows the
    loopback names, and any other server allows any name. listening_on: address of the listener.

    The check stops DNS rebinding. In that attack, the name of a hostile page resolves to 127.0.0.1. The browser then
    sends the name of that page in the Host header.
    """
    if allowed is not None:
        names = frozenset(name.lower() for name in allowed)
        return None if "*" in names else names
    if not is_loopback(listening_on):
        return None
    return LOOPBACK_NAMES | {f"[{listening_on}]" if ":" in listening_on else listening_on}
