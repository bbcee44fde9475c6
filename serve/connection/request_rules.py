"""Defines the rules for the head and the chunks of a request. `serve.connection.http_connection` applies them.

The rules are stricter than the standard: they refuse a target that is not a path, a second Host and HTTP/0.9. No client
needs such requests, and attackers use them to smuggle requests past a proxy.
"""

from __future__ import annotations

from serve.errors import HeadTooLargeError, MalformedRequestError, ServeError, TooManyChunksError, UntrustedHostError
from serve.limits import HOST_PATTERN, ConnectionLimits

MAX_HEADERS = 256
CHUNK_BYTES = 32  # allowed for the size line and the line ends of a chunk

PROBES = frozenset({b"/healthz", b"/readyz", b"/v2/health/live", b"/v2/health/ready"})

Headers = list[tuple[bytes, bytes]]


def head_error(limits: ConnectionLimits, version: str, target: bytes, headers: Headers) -> ServeError | None:
    """Checks the head of a request after the parser has accepted it. Returns the error; None if the head is allowed.

    version: of HTTP, such as "1.1". target: the path with its query. headers: with lower-case names.
    """
    if len(headers) > MAX_HEADERS:
        return HeadTooLargeError(f"the request has more than {MAX_HEADERS} headers, the limit")
    if len(target) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_head_bytes:
        return HeadTooLargeError(f"the request head has more than {limits.max_head_bytes:,} bytes, the limit")
    if version not in ("1.0", "1.1"):
        return MalformedRequestError("the request is neither HTTP/1.1 nor HTTP/1.0")
    if not target.startswith(b"/"):  # http://host/path is for proxies, and its host may contradict the Host header
        return MalformedRequestError("the request target does not begin with /: send the path alone")
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if encodings and (encodings[0].lower() != b"chunked" or len(encodings) > 1 or version == "1.0"):
        return MalformedRequestError("the Transfer-Encoding must be chunked and nothing else, in HTTP/1.1")
    hosts = [value for name, value in headers if name == b"host"]
    # Load balancers probe in HTTP/1.0 without a Host. DNS rebinding needs a browser, which always sends one.
    if not hosts and version == "1.0" and (limits.hosts is None or target.partition(b"?")[0] in PROBES):
        return None
    return _host_error(hosts, limits.hosts)


def has_body(headers: Headers) -> bool:
    """Returns whether a request with these headers has a body. Requires headers that `head_error` accepts."""
    return content_length(headers) > 0 or any(name == b"transfer-encoding" for name, _ in headers)


def content_length(headers: Headers) -> int:
    """Returns the value of Content-Length in bytes; 0 without this header."""
    return sum(int(value) for name, value in headers if name == b"content-length")


def chunk_error(limits: ConnectionLimits, *, chunks: int, framing: int) -> ServeError | None:
    """Returns the error of a body that has too many chunks or too many bytes besides its content; None otherwise.

    chunks: number of chunks so far. framing: bytes of chunk headers, chunk extensions and trailers so far.
    """
    if chunks > limits.max_chunks:
        return TooManyChunksError(limits.max_chunks)
    if framing > limits.max_head_bytes + CHUNK_BYTES * chunks:
        return MalformedRequestError(
            "the body has too many bytes of chunk extensions or trailers: send it without them"
        )
    return None


def _host_error(hosts: list[bytes], trusted: frozenset[str] | None) -> ServeError | None:
    if len(hosts) != 1:
        return MalformedRequestError(f"the request has {len(hosts)} Host headers; it must have one")
    match = HOST_PATTERN.fullmatch(hosts[0].decode("latin-1"))
    if match is None:
        return MalformedRequestError("the Host header is not a host with an optional port")
    if trusted is not None and match[1].lower() not in trusted:
        return UntrustedHostError()
    return None
