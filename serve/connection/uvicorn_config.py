"""Builds the configuration of every uvicorn server, with the same protocol class and safety options.

Knows nothing about routes, operator settings or processes.
"""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

from serve.connection.http_connection import AdmissionCheck, HttpConnection
from serve.limits import ConnectionLimits
from serve.telemetry.metrics import Metrics


def uvicorn_config(
    app: ASGIApp,
    *,
    limits: ConnectionLimits,
    check_admission: AdmissionCheck,
    metrics: Metrics,
    has_lifespan: bool,
    keep_alive_s: int,
    drain_timeout_s: int,
) -> uvicorn.Config:
    """Returns the configuration of one uvicorn server. Each server counts and limits its connections separately.

    check_admission: called for each valid head. has_lifespan: whether the application handles the ASGI events of
    startup and shutdown. keep_alive_s: seconds for which a connection may wait for its next request. drain_timeout_s:
    seconds that accepted requests may take after the server has stopped listening.
    """
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=_protocol_class(limits, check_admission, metrics),
        ws="none",
        lifespan="on" if has_lifespan else "off",
        log_config=None,
        access_log=False,  # RequestLogMiddleware and HttpConnection log the requests
        server_header=False,
        proxy_headers=False,  # the address of the client is not used
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=drain_timeout_s,
    )


def _protocol_class(
    limits: ConnectionLimits, check_admission: AdmissionCheck, metrics: Metrics
) -> type[HttpConnection]:
    attributes = {
        "limits": limits,
        "check_admission": staticmethod(check_admission),
        "metrics": metrics,
        "probes": set(),
        "surplus": set(),
        "delayed": set(),
    }
    return type("ServerProtocol", (HttpConnection,), attributes)
