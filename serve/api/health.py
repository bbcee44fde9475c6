"""The routes for load balancers and monitoring: /healthz, /readyz and, if the settings allow it, /metrics."""

from __future__ import annotations

from fastapi import FastAPI, Response

from serve.errors import NotReadyError
from serve.http.problems import openapi_responses
from serve.inference.service import Service

TAG = "Health"


def add_health_routes(app: FastAPI, service: Service) -> None:
    """Registers GET /healthz and GET /readyz, and GET /metrics if `service.settings.has_public_metrics` is true."""

    @app.get("/healthz", tags=[TAG], summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        tags=[TAG],
        summary="Has the engine reproduced the golden rows on this machine?",
        responses={503: openapi_responses()[503]},
    )
    async def readyz() -> dict[str, str]:
        if not service.is_ready:
            raise NotReadyError
        return {"status": "ready"}

    if not service.settings.has_public_metrics:
        return

    @app.get("/metrics", tags=[TAG], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        body, media_type = service.metrics.render()
        return Response(body, media_type=media_type)
