"""Which pages from other origins a browser lets read answers (CORS). No credentials: API keys are headers here.

`serve.connection.http_connection` adds `cors_headers` to every answer, its own refusals too. `serve.api.app` answers
the preflight.
"""

from __future__ import annotations

import starlette.datastructures
from starlette.responses import Response

Headers = list[tuple[bytes, bytes]]

ANY = "*"
METHODS = "GET, HEAD, POST"
# What the server reads and a page may not send unasked.
REQUEST_HEADERS = (
    "Content-Encoding, Content-Type, Inference-Header-Content-Length, traceparent, tracestate, X-API-Key, "
    "X-Request-ID, X-Request-Key"
)
EXPOSED = b"Inference-Header-Content-Length, Retry-After, Server-Timing, X-Request-ID"
PREFLIGHT_AGE_S = 600


def allowed_origin(origins: frozenset[str], request_headers: Headers) -> bytes | None:
    """The origin whose pages may read the answer to this request, or None. origins: the setting; ANY: all."""
    if ANY in origins:
        return ANY.encode()
    sent = [value for name, value in request_headers if name == b"origin"]
    return sent[0] if len(sent) == 1 and sent[0].decode("latin-1") in origins else None


def cors_headers(origins: frozenset[str], request_headers: Headers) -> Headers:
    """The headers that an answer has for the sake of CORS; none where the setting names no origin."""
    if not origins:
        return []
    vary = [] if ANY in origins else [(b"vary", b"Origin")]  # the answer for one origin is not that for another
    origin = allowed_origin(origins, request_headers)
    if origin is None:
        return vary
    return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), *vary]


def preflight_answer(origins: frozenset[str], headers: starlette.datastructures.Headers) -> Response | None:
    """The answer to a browser that asks what a page may send; None where it does not ask, or the page may not."""
    if "access-control-request-method" not in headers or allowed_origin(origins, headers.raw) is None:
        return None
    answered = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": REQUEST_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
    }
    return Response(status_code=204, headers=answered)
