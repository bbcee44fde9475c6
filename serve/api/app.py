"""Assembles the public HTTP application: its routes, middleware, error handlers and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI

import tureen
from serve.api.classify import CLASSIFY_TAG, add_classify_routes
from serve.api.console.console_routes import add_console
from serve.api.docs import add_docs_routes
from serve.api.health import TAG as HEALTH_TAG
from serve.api.health import add_health_routes
from serve.http.body_stream import BodyMemory
from serve.http.direct_route import DirectRouteMiddleware, add_head_routes
from serve.http.error_handlers import add_error_handlers
from serve.http.request_log import RequestLogMiddleware
from serve.inference.service import Service
from serve.oip.http_routes import add_oip_routes
from serve.oip.openapi_operations import TAG as OIP_TAG

if TYPE_CHECKING:
    from serve.telemetry.tracing import Tracing

TAGS = [
    {"name": CLASSIFY_TAG, "description": "One image or several, each at its own β"},
    {"name": OIP_TAG, "description": "The protocol of tritonclient and kserve, under `/v2`"},
    {"name": HEALTH_TAG, "description": "For load balancers and monitoring"},
]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(service: Service, lifespan: Lifespan | None = None, tracing: Tracing | None = None) -> FastAPI:
    """Returns the public HTTP application of a service.

    lifespan: a context that the application enters at startup and leaves at shutdown; by default it opens and closes
    the service. tracing: receives a trace of each request, and is closed by the caller; None: no traces.
    """

    @asynccontextmanager
    async def open_and_close(app: FastAPI) -> AsyncIterator[None]:
        await service.open()
        yield
        await service.close()

    app = FastAPI(
        title="Tureen",
        version=tureen.__version__,
        description="Classifies images with an adversarial model soup. `beta` sets the soup of each request: 0 is the "
        "clean token, 1 is the robust token. Robust accuracy is measured under a named attack. It is not a guarantee.",
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan or open_and_close,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours is in serve.telemetry
    )
    app.state.service = service
    add_error_handlers(app, service.settings.cors_origins)
    metrics = service.metrics
    memory = BodyMemory(service.settings.max_body_memory, partial(metrics.pending.set, metrics.body_bytes))
    routers = [add_classify_routes(app, service, memory)]
    add_health_routes(app, service)
    routers.append(add_oip_routes(app, service, memory))
    add_docs_routes(app)
    add_console(
        app,
        lambda: (service.bundle.manifest, service.active_settings),
        gallery=lambda: service.bundle.gallery,
        is_operators=False,
    )
    add_head_routes(app.router)
    app.add_middleware(DirectRouteMiddleware, routers=routers)
    app.add_middleware(RequestLogMiddleware, metrics=metrics, tracing=tracing)  # around the one before
    return app
