"""What is asked of bytes before they are a request: limits in time and size, and which heads are sound.

Pure rules; `serve.connection.http_connection` applies them to connections. Stricter than the standard where clients
have no use for the leniency and desynchronised proxies have: a target that is no path, a second Host, an HTTP/0.9.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from serve.errors import HeadTooLargeError, MalformedRequestError, ServeError, UntrustedHostError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
MAX_HEADERS = 256
_HOST = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST.pattern}")

PROBES = frozenset({b"/healthz", b"/readyz", b"/v2/health/live", b"/v2/health/ready"})

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class WireLimits:
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
    max_swallowed_bytes: int = 32 * 2**20  # of a body that nobody wants, so that its sender gets to the answer
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


def fault_of_head(limits: WireLimits, version: str, target: bytes, headers: Headers) -> ServeError | None:
    """What is wrong with a head that the parser took, or None. Header names are in lower case."""
    if len(headers) > MAX_HEADERS:
        return HeadTooLargeError(f"the request has more than {MAX_HEADERS} headers, the limit")
    if len(target) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_head_bytes:
        return HeadTooLargeError(f"the request's head has more than {limits.max_head_bytes:,} bytes, the limit")
    if version not in ("1.0", "1.1"):
        return MalformedRequestError("the request is neither HTTP/1.1 nor HTTP/1.0")
    if not target.startswith(b"/"):  # http://host/path is for proxies; of two hosts one would have to be wrong
        return MalformedRequestError("the request's target does not begin with /: send the path alone")
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if encodings and (encodings[0].lower() != b"chunked" or len(encodings) > 1 or version == "1.0"):
        return MalformedRequestError("the Transfer-Encoding is not chunked alone")
    hosts = [value for name, value in headers if name == b"host"]
    # Load balancers check health in HTTP/1.0 without a Host. A browser, which DNS rebinding needs, always sends one.
    if not hosts and version == "1.0" and (limits.hosts is None or target.partition(b"?")[0] in PROBES):
        return None
    return _fault_of_host(hosts, limits.hosts)


def _fault_of_host(hosts: list[bytes], trusted: frozenset[str] | None) -> ServeError | None:
    if len(hosts) != 1:
        return MalformedRequestError(f"the request has {len(hosts)} Host headers; it must have one")
    match = _HOST.fullmatch(hosts[0].decode("latin-1"))
    if match is None:
        return MalformedRequestError("the Host header is no host and port")
    if trusted is not None and match[1].lower() not in trusted:
        return UntrustedHostError()
    return None
