"""Limits of bodies and connections, and which hosts and origins are valid. Knows nothing about who applies them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BodyLimits:
    """What a body may hold, all of it settings."""

    max_image_bytes: int
    max_request_bytes: int
    max_images: int


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


_HOST = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST.pattern}")


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may cost.

    hosts: names that requests may be sent to, without ports; None: any. cors_origins: as `serve.http.cors` has them.
    """

    hosts: frozenset[str] | None = None
    cors_origins: frozenset[str] = frozenset()
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    body_grace_s: float = 2.0
    min_body_rate: int = 1024
    send_timeout_s: float = 30.0
    linger_s: float = 5.0
    max_head_bytes: int = 64 * 1024
    max_chunks: int = 65_536
    max_pipelined: int = 64  # requests in one read
    max_discarded_bytes: int = 32 * 2**20  # of a refused body: its sender reads the response after sending
    max_connections: int = 1024
    max_probe_connections: int = 16  # beyond max_connections; each may ask whether the server is alive or ready
    probe_timeout_s: float = 2.0  # in which such a connection sends its head

    @property
    def tick_s(self) -> float:
        """How often a connection looks at the clock, and so how late a deadline may be."""
        shortest = min(self.head_timeout_s, self.body_timeout_s, self.body_grace_s, self.send_timeout_s, self.linger_s)
        return min(1.0, shortest / 2)

    def is_late(self, elapsed_s: float, received: int) -> bool:
        """Whether a body of which so many bytes are here after as many seconds comes too slowly."""
        due = self.min_body_rate * (elapsed_s - self.body_grace_s)
        return elapsed_s > self.body_timeout_s or received < due


def is_host_name(text: str) -> bool:
    """Whether a Host header may be this text, which has no port."""
    match = _HOST.fullmatch(text)
    return match is not None and match[2] is None


def is_origin(text: str) -> bool:
    """Whether a browser's Origin header may be this text: scheme, host and port, without the scheme's own port."""
    return text == "null" or _ORIGIN.fullmatch(text) is not None


def is_loopback(address: str) -> bool:
    """Whether this machine alone reaches what listens there."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def trusted_hosts(allowed: Iterable[str] | None, listening_on: str) -> frozenset[str] | None:
    """The names of the setting; where there is none, those of loopback if that is where the server listens, else any.

    A page of somebody else's, whose name resolves to 127.0.0.1 once it is loaded (DNS rebinding), sends its own name.
    """
    if allowed is not None:
        names = frozenset(name.lower() for name in allowed)
        return None if "*" in names else names
    if not is_loopback(listening_on):
        return None
    return LOOPBACK_NAMES | {f"[{listening_on}]" if ":" in listening_on else listening_on}
