"""The settings and errors of httpx2 that both clients share. Sends nothing."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, TypedDict

import httpx2

from tureen.client.attempts import Attempts, deadline_error
from tureen.client.client_errors import ClientError, ConnectionLostError, UnreachableError
from tureen.errors import ArgumentError
from tureen.version import __version__

CONNECT_TIMEOUT_S: Final = 5.0
KEEPALIVE_S: Final = 5.0  # less than a server keeps an unused connection, so that it closes none during a request
SHORTEST_WAIT_S: Final = 0.001  # a socket with the limit 0 would not wait at all


class HttpOptions(TypedDict):
    """The keyword arguments of httpx2.Client and httpx2.AsyncClient."""

    base_url: httpx2.URL
    headers: dict[str, str]
    limits: httpx2.Limits
    verify: ssl.SSLContext | bool


def http_options(
    url: str, api_key: str | None, headers: Mapping[str, str] | None, ssl_context: ssl.SSLContext | None
) -> HttpOptions:
    """Returns the options of the HTTP client for a server.

    url: of the server, with http or https. Raises ArgumentError for another one.
    """
    try:
        base_url = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        base_url = httpx2.URL("")
    if base_url.scheme not in ("http", "https") or not base_url.host:
        raise ArgumentError('the URL has another form: give one such as "http://127.0.0.1:8000"')
    key = {} if api_key is None else {"X-API-Key": api_key}
    return {
        "base_url": base_url,
        "headers": {"User-Agent": f"tureen/{__version__}", **(headers or {}), **key},
        "limits": httpx2.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_S),
        "verify": True if ssl_context is None else ssl_context,
    }


class PhaseTimeouts(dict[str, Any]):
    """The limits of one HTTP request for httpx2, which asks for one at the start of each phase.

    The phases are: wait for a connection, connect, write, read the head, read the body. A phase has the time that is
    left of the call.
    """

    def __init__(self, attempts: Attempts) -> None:
        super().__init__(dict.fromkeys(("connect", "pool", "read", "write")))
        self._attempts = attempts

    def get(self, key: str, default: Any = None) -> Any:
        remaining_s = max(SHORTEST_WAIT_S, self._attempts.remaining_s)
        return min(remaining_s, CONNECT_TIMEOUT_S) if key == "connect" else remaining_s


def transport_error(error: httpx2.RequestError) -> ClientError:
    """Returns the error of a client for an error of httpx2."""
    if isinstance(
        error,
        httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError,
    ):
        return UnreachableError("no connection to the server could be made", code="unreachable")
    if isinstance(error, httpx2.TimeoutException):
        return deadline_error()
    return ConnectionLostError("the connection ended before the response was complete", code="connection_lost")
