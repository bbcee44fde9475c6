"""Computes the CORS headers, which decide whether a page of another origin may read a response in a browser.

Allows no credentials, such as cookies. `serve.connection.http_connection` adds `cors_headers` to every response,
including refusals. `serve.http.error_handlers` sends `preflight_response`.
"""

from __future__ import annotations

import starlette.datastructures
from starlette.responses import Response

Headers = list[tuple[bytes, bytes]]

ANY = "*"
METHODS = "GET, HEAD, POST"
# Headers that the server reads and that a page may send only after a preflight.
REQUEST_HEADERS = (
    "Content-Encoding, Content-Type, Inference-Header-Content-Length, traceparent, tracestate, X-API-Key, "
    "X-Request-ID, X-Request-Key"
)
EXPOSED = b"Inference-Header-Content-Length, Retry-After, Server-Timing, X-Request-ID"
PREFLIGHT_AGE_S = 600


def allowed_origin(origins: frozenset[str], request_headers: Headers) -> bytes | None:
    """Returns the value of Access-Control-Allow-Origin for a request, or None if its origin is not allowed.

    origins: the allowed origins. If they contain ANY, returns ANY for every request. Otherwise returns the request's
    own origin, or None if the request has no header Origin or more than one.
    """
    if ANY in origins:
        return ANY.encode()
    sent = [value for name, value in request_headers if name == b"origin"]
    return sent[0] if len(sent) == 1 and sent[0].decode("latin-1") in origins else None


def cors_headers(origins: frozenset[str], request_headers: Headers) -> Headers:
    """Returns the CORS headers of the response to a request; no headers if `origins` is empty.

    origins: the allowed origins.
    """
    if not origins:
        return []
    vary = [] if ANY in origins else [(b"vary", b"Origin")]  # caches keep one response per origin
    origin = allowed_origin(origins, request_headers)
    if origin is None:
        return vary
    return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), *vary]


def preflight_response(origins: frozenset[str], headers: starlette.datastructures.Headers) -> Response | None:
    """Returns the response to a CORS preflight, with status 204.

    Returns None if the request is not a preflight, or if its origin is not allowed. origins: the allowed origins.
    headers: of the request.
    """
    if "access-control-request-method" not in headers or allowed_origin(origins, headers.raw) is None:
        return None
    response_headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": REQUEST_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
    }
    return Response(status_code=204, headers=response_headers)
