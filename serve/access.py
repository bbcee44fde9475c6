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
from serve.journey import JOURNEY, Journey
from serve.logs import FIELDS
from serve.metrics import METHODS, Metrics
from serve.oip.errors import is_oip, oip_response
from serve.problems import INTERNAL, Kind, kind_of, problem_response

if TYPE_CHECKING:
    from serve.tracing import Tracing

REQUEST_ID = "x-request-id"
QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_FIELDS_KEY = "tureen.access"
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("tureen.access")


def access_fields(scope: Scope) -> dict[str, Any]:
    """The request's own fields of its log event, to be added to by whoever knows more."""
    fields: dict[str, Any] = scope.setdefault(_FIELDS_KEY, {})
    return fields


class AccessMiddleware:
    """Counts, times, logs and names every request; takes the client's X-Request-ID where it is a sound one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SOUND_ID.fullmatch(given) else secrets.token_hex(8)
        fields = access_fields(scope)
        if self._tracing is not None:
            JOURNEY.set(Journey())
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
            self._record(scope, status, time.perf_counter() - started, request_id, fields)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str, fields: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if "code" in fields:
            self._metrics.rejections.labels(fields["code"]).inc()
        journey = JOURNEY.get()
        if self._tracing is not None and journey is not None and route not in QUIET_ROUTES:
            fields["trace_id"] = self._tracing.record(
                f"{method} {route}",
                Headers(scope=scope),
                journey,
                seconds=seconds,
                is_failed=status >= 500,
                attributes={
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "error.type": fields.get("code"),
                    "tureen.request_id": request_id,
                    "tureen.beta": fields.get("beta"),
                    "tureen.beta_source": fields.get("beta_source"),
                },
            )
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        if logger.isEnabledFor(level):
            event = {"request_id": request_id, "method": method, "route": route, "status": status}
            logger.log(level, "request", extra={FIELDS: {**event, "ms": round(1000 * seconds, 3), **fields}})


def _respond(scope: Scope) -> Callable[[Kind, str], JSONResponse]:
    return oip_response if is_oip(scope) else problem_response
