"""One structured log event and one set of metrics for each request, its id, and an answer whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ShuttingDownError
from serve.http.problems import INTERNAL, Kind, is_oip, kind_of, oip_response, problem_response
from serve.telemetry.logs import FIELDS
from serve.telemetry.metrics import METHODS, Metrics
from serve.telemetry.request_trace import REQUEST_TRACE, RequestTrace

if TYPE_CHECKING:
    from serve.telemetry.tracing import Tracing

REQUEST_ID = "x-request-id"
QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_FIELDS_KEY = "tureen.access"
_ID_KEY = "tureen.request_id"
_ANSWERED_KEY = "tureen.answered"
_ARRIVED_KEY = "tureen.arrived_s"
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("tureen.access")


def access_fields(scope: Scope) -> dict[str, Any]:
    """The request's own fields of its log event, to be added to by whoever knows more."""
    fields: dict[str, Any] = scope.setdefault(_FIELDS_KEY, {})
    return fields


def request_id_of(scope: Scope) -> str:
    """The request's id: the client's where it is a sound one, else one of ours."""
    if _ID_KEY not in scope:
        given = Headers(scope=scope).get(REQUEST_ID, "")
        scope[_ID_KEY] = given if _SOUND_ID.fullmatch(given) else secrets.token_hex(8)
    request_id: str = scope[_ID_KEY]
    return request_id


def arrived_s(scope: Scope) -> float:
    """When the request's head was here (time.monotonic); by the first call at the latest."""
    if _ARRIVED_KEY not in scope:
        scope[_ARRIVED_KEY] = time.monotonic()
    arrived: float = scope[_ARRIVED_KEY]
    return arrived


def answered_elsewhere(scope: Scope, kind: Kind) -> None:
    """Say that the client has got this error already, whatever the application makes of its request."""
    scope[_ANSWERED_KEY] = kind


def record(metrics: Metrics, scope: Scope, status: int, seconds: float) -> None:
    """Count, time and log one answered request, whoever answered it; the scope may be of a head that was cut short."""
    fields = dict(access_fields(scope))
    status, code = _told(scope, status)
    route = fields.pop("route", None) or getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope.get("method") in METHODS else "other"
    metrics.requests.labels(route, method, str(status)).inc()
    metrics.request_seconds.labels(route).observe(seconds)
    if code is not None:
        fields["code"] = code
        metrics.rejections.labels(code).inc()
    level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
    if logger.isEnabledFor(level):
        event = {"request_id": request_id_of(scope), "method": method, "route": route, "status": status}
        logger.log(level, "request", extra={FIELDS: {**event, "ms": round(1000 * seconds, 3), **fields}})


class RequestLogMiddleware:
    """Counts, times, logs and names every request; takes the client's X-Request-ID where it is a sound one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = arrived_s(scope)
        request_id = request_id_of(scope)
        fields = access_fields(scope)
        if self._tracing is not None:
            REQUEST_TRACE.set(RequestTrace())
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except asyncio.CancelledError:  # the drain's time is over; uvicorn would answer in its own words
            error = ShuttingDownError()
            kind = kind_of(error)
            fields["code"] = kind.code
            if not status:
                await _respond(scope)(kind, str(error))(scope, receive, send_named)
        except Exception:  # a defect of ours: the log has it under the request's id, the client has the id
            logger.exception("unhandled", extra={FIELDS: {"request_id": request_id}})
            fields["code"] = INTERNAL.code
            if status:
                raise  # too late for another answer
            problem = _respond(scope)(INTERNAL, "the server's log says more under this request's id")
            await problem(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - started
            if self._tracing is not None:
                _trace(self._tracing, scope, status, seconds)
            record(self._metrics, scope, status, seconds)


def _trace(tracing: Tracing, scope: Scope, status: int, seconds: float) -> None:
    """Make the request's trace, and have its log event name it."""
    fields, trace = access_fields(scope), REQUEST_TRACE.get()
    route = getattr(scope.get("route"), "path", "unmatched")
    if trace is None or route in QUIET_ROUTES:
        return
    status, code = _told(scope, status)
    fields["trace_id"] = tracing.record(
        f"{scope['method']} {route}",
        Headers(scope=scope),
        trace,
        seconds=seconds,
        is_failed=status >= 500,
        attributes={
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "error.type": code,
            "tureen.request_id": request_id_of(scope),
            "tureen.beta": fields.get("beta"),
            "tureen.beta_source": fields.get("beta_source"),
        },
    )


def _told(scope: Scope, status: int) -> tuple[int, str | None]:
    """The status and the error's code that the client has got, whoever answered it."""
    answered: Kind | None = scope.get(_ANSWERED_KEY)
    return (status, access_fields(scope).get("code")) if answered is None else (answered.status, answered.code)


def _respond(scope: Scope) -> Callable[[Kind, str], JSONResponse]:
    return oip_response if is_oip(scope) else problem_response
