"""Writes a log event and metrics for every request, gives each an id, and responds to every unhandled error."""

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
from serve.http.problems import (
    INTERNAL,
    INTERNAL_DETAIL,
    ProblemType,
    is_oip,
    oip_response,
    problem_response,
    problem_type_of,
)
from serve.telemetry.logs import FIELDS, log_event
from serve.telemetry.metrics import METHODS, Metrics
from serve.telemetry.request_trace import REQUEST_TRACE, RequestTrace

if TYPE_CHECKING:
    from serve.telemetry.tracing import Tracing

REQUEST_ID = "x-request-id"
QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_FIELDS_KEY = "tureen.access"  # keys of the ASGI scope
_ID_KEY = "tureen.request_id"
_REFUSAL_KEY = "tureen.refusal"
_ARRIVED_KEY = "tureen.arrived_s"
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("tureen.access")


def access_fields(scope: Scope) -> dict[str, Any]:
    """Returns the fields of the request's log event, as a dictionary to which any code may add fields."""
    fields: dict[str, Any] = scope.setdefault(_FIELDS_KEY, {})
    return fields


def request_id_of(scope: Scope) -> str:
    """Returns the id of the request: a valid X-Request-ID from the client, else a generated one."""
    if _ID_KEY not in scope:
        client_id = Headers(scope=scope).get(REQUEST_ID, "")
        scope[_ID_KEY] = client_id if _VALID_ID.fullmatch(client_id) else secrets.token_hex(8)
    request_id: str = scope[_ID_KEY]
    return request_id


def arrived_s(scope: Scope) -> float:
    """Returns the time at which the head of the request was complete, in the clock of time.monotonic.

    The first call for a request sets the time. The connection makes this call when the head is complete.
    """
    if _ARRIVED_KEY not in scope:
        scope[_ARRIVED_KEY] = time.monotonic()
    arrived: float = scope[_ARRIVED_KEY]
    return arrived


def set_refusal(scope: Scope, kind: ProblemType) -> None:
    """Records in the scope that the connection has sent an error of type `kind` to the client.

    The log then has this error. The response of the application does not reach the client, so the log ignores it.
    """
    scope[_REFUSAL_KEY] = kind


def record(metrics: Metrics, scope: Scope, status: int, seconds: float) -> None:
    """Updates the metrics and writes the log event of one completed request.

    status: of the application's response; 0: it sent none. If the connection refused the request before the application
    started, uses the status of that refusal instead. seconds: duration of the request. scope: may lack keys if the
    connection ended before the head was complete.
    """
    fields = dict(access_fields(scope))
    status, code = _sent(scope, status)
    route = fields.pop("route", None) or getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope.get("method") in METHODS else "other"
    metrics.count_request(route, method, str(status), seconds)
    if code is not None:
        fields["code"] = code
        metrics.count_rejection(code)
    level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
    if logger.isEnabledFor(level):
        event = {"request_id": request_id_of(scope), "method": method, "route": route, "status": status}
        log_event(logger, level, "request", {**event, "ms": round(1000 * seconds, 3), **fields})


class RequestLogMiddleware:
    """ASGI middleware that logs and counts every request, and adds the header X-Request-ID to the response.

    Responds with the status 500 to an unhandled exception, and with 503 if the drain timeout cancels the request.
    """

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

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the drain timeout has passed; uvicorn would send its own error
            error = ShuttingDownError()
            kind = problem_type_of(error)
            fields["code"] = kind.code
            if not status:
                await _respond(scope)(kind, str(error))(scope, receive, send_with_id)
        except Exception:  # a defect: the client gets the request id, and the log has the cause under it
            logger.exception("unhandled", extra={FIELDS: {"request_id": request_id}})
            fields["code"] = INTERNAL.code
            if status:
                raise  # the response has started
            problem = _respond(scope)(INTERNAL, INTERNAL_DETAIL)
            await problem(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            if self._tracing is not None:
                _trace(self._tracing, scope, status, seconds)
            record(self._metrics, scope, status, seconds)


def _trace(tracing: Tracing, scope: Scope, status: int, seconds: float) -> None:
    """Exports the trace of the request, and adds the trace id to the log event. Does nothing for QUIET_ROUTES.

    status: of the response that the application sent. seconds: duration of the request.
    """
    fields, trace = access_fields(scope), REQUEST_TRACE.get()
    route = getattr(scope.get("route"), "path", "unmatched")
    if trace is None or route in QUIET_ROUTES:
        return
    status, code = _sent(scope, status)
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


def _sent(scope: Scope, status: int) -> tuple[int, str | None]:
    """Returns the status and the error code that the client received. The code is None if there was no error.

    If the connection sent an error itself (`set_refusal`), returns the status and the code of that error. Otherwise
    returns `status`, the status of the application's response, and the code in `access_fields`.
    """
    refusal: ProblemType | None = scope.get(_REFUSAL_KEY)
    return (status, access_fields(scope).get("code")) if refusal is None else (refusal.status, refusal.code)


def _respond(scope: Scope) -> Callable[[ProblemType, str], JSONResponse]:
    return oip_response if is_oip(scope) else problem_response
