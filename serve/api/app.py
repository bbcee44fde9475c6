"""The HTTP application: its routes, health, documentation, and what errors become."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fastapi_swagger
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import tureen
from serve.api.classify import CLASSIFY_TAG, add_routes
from serve.api.console.console_routes import add_console
from serve.errors import NotReadyError
from serve.http.body_stream import BodyMemory
from serve.http.cors import preflight_response
from serve.http.direct_route import add_head_routes
from serve.http.problems import (
    INTERNAL,
    headers_of,
    http_kind,
    is_oip,
    kind_of,
    oip_kind,
    oip_response,
    openapi_responses,
    problem_response,
)
from serve.http.request_log import RequestLogMiddleware, access_fields
from serve.inference.service import Service
from serve.oip.documented_routes import TAG as OIP_TAG
from serve.oip.http_routes import add_oip_routes
from tureen.errors import TureenError

if TYPE_CHECKING:
    from serve.telemetry.tracing import Tracing

logger = logging.getLogger("tureen.serve")

HEALTH_TAG = "Health"
TAGS = [
    {"name": CLASSIFY_TAG, "description": "One image or several, each at its own β"},
    {"name": OIP_TAG, "description": "The protocol that tritonclient and kserve speak, under `/v2`"},
    {"name": HEALTH_TAG, "description": "For load balancers and monitoring"},
]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(service: Service, lifespan: Lifespan | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The application for one service, which it opens first and closes last unless another lifespan is given.

    tracing: where a trace of each request goes; whoever made it closes it.
    """

    @asynccontextmanager
    async def open_and_close(app: FastAPI) -> AsyncIterator[None]:
        await service.open()
        yield
        await service.close()

    app = FastAPI(
        title="Tureen",
        version=tureen.__version__,
        description="Classifies images with an adversarial model soup. `beta` chooses the soup for each request: "
        "0 is the clean token, 1 the robust one. Robust is an empirical accuracy under a stated attack, no guarantee.",
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan or open_and_close,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours is in serve.telemetry
    )
    app.state.service = service
    app.add_middleware(RequestLogMiddleware, metrics=service.metrics, tracing=tracing)
    app.add_exception_handler(TureenError, _tureen_problem)
    app.add_exception_handler(HTTPException, _http_problem)
    memory = BodyMemory(service.settings.max_body_memory, service.metrics.body_bytes.set)
    add_routes(app, service, memory)
    _add_health(app, service)
    add_oip_routes(app, service, memory)
    _add_docs(app)
    add_console(app, lambda: (service.bundle.manifest, service.active_settings), is_operators=False)
    add_head_routes(app.router)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=[HEALTH_TAG], summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        tags=[HEALTH_TAG],
        summary="Has the engine reproduced the golden rows on this machine?",
        responses=_not_ready(),
    )
    async def readyz() -> dict[str, str]:
        if not service.is_ready:
            raise NotReadyError
        return {"status": "ready"}

    if not service.settings.has_public_metrics:
        return

    @app.get("/metrics", tags=[HEALTH_TAG], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        body, media_type = service.metrics.render()
        return Response(body, media_type=media_type)


def _add_docs(app: FastAPI) -> None:
    """Swagger UI at /docs from this server's own files: nothing is loaded from elsewhere."""
    resources = Path(fastapi_swagger.__file__).parent / "resources"
    media_types = {
        "swagger-ui-bundle.js": "text/javascript",
        "swagger-ui.css": "text/css",
        "favicon-32x32.png": "image/png",
    }
    # Whole from memory: ranges of a file are one more thing that hostile requests could ask for.
    contents = {name: (resources / name).read_bytes() for name in media_types}

    @app.get("/docs/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=media_types[name], headers={"Cache-Control": "max-age=86400"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title}: HTTP API",
            swagger_js_url="docs/static/swagger-ui-bundle.js",
            swagger_css_url="docs/static/swagger-ui.css",
            swagger_favicon_url="docs/static/favicon-32x32.png",
        )


def _not_ready() -> dict[int | str, dict[str, object]]:
    return {503: openapi_responses()[503]}


async def _tureen_problem(request: Request, error: Exception) -> JSONResponse:
    kind = oip_kind(error) if is_oip(request.scope) else kind_of(error)
    if kind is INTERNAL:  # not an error of requests at all, so its message is not for clients
        raise error
    access_fields(request.scope)["code"] = kind.code
    respond = oip_response if is_oip(request.scope) else problem_response
    return respond(kind, str(error), headers_of(error))


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.method == "OPTIONS":
        origins = request.app.state.service.settings.cors_origins
        if (answer := preflight_response(origins, request.headers)) is not None:
            return answer
    kind = http_kind(error.status_code)
    access_fields(request.scope)["code"] = kind.code
    detail = (
        f"{request.method} is not for this path, see /docs" if kind.status == 405 else "see /docs for what there is"
    )
    respond = oip_response if is_oip(request.scope) else problem_response
    return respond(kind, detail, dict(error.headers or {}))
