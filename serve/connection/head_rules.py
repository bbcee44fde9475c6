"""What is asked of bytes before they are a request: limits in time and size, and which heads are sound.

Pure rules; `serve.connection.http_connection` applies them to connections. Stricter than the standard where clients
have no use for the leniency and desynchronised proxies have: a target that is no path, a second Host, an HTTP/0.9.
"""

from __future__ import annotations

from serve.errors import HeadTooLargeError, MalformedRequestError, ServeError, UntrustedHostError
from serve.limits import _HOST, ConnectionLimits

MAX_HEADERS = 256

PROBES = frozenset({b"/healthz", b"/readyz", b"/v2/health/live", b"/v2/health/ready"})

Headers = list[tuple[bytes, bytes]]


def fault_of_head(limits: ConnectionLimits, version: str, target: bytes, headers: Headers) -> ServeError | None:
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
