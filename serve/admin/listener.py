"""Builds the HTTP application of the operators' listener, and runs it in a uvicorn server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import tureen
from serve.admin.auth import authenticate, refuse_unknown_parameters
from serve.admin.job_routes import add_job_routes
from serve.admin.operations import AdminOperations
from serve.admin.settings_routes import add_settings_routes
from serve.admin.token_routes import add_token_routes
from serve.api.console.console_routes import add_console
from serve.connection.graceful_shutdown import DrainingState
from serve.connection.uvicorn_config import uvicorn_config
from serve.control.revision_store import RevisionStore
from serve.control.worker_state import ApplySettings, CheckToken, WorkerState
from serve.errors import AdminListenerError, ControlStoreError, InvalidParameterError
from serve.http.error_handlers import tureen_error_response
from serve.http.problems import http_problem_type, problem_response
from serve.http.request_log import RequestLogMiddleware, access_fields
from serve.limits import ConnectionLimits, trusted_hosts
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.manifest import Manifest
from tureen.errors import TureenError

logger = logging.getLogger("tureen.admin")

# Operators receive these texts. The messages of the errors contain paths, addresses and texts of the database.
_PUBLIC_DETAILS: dict[type[TureenError], str] = {
    ControlStoreError: "the store of the operator's settings cannot be used; the last known settings stay in force and "
    "cannot be changed: see the server's log for the reason",
    AdminListenerError: "other machines reach this address, and no credential was made for them: see the server's log",
}


class AdminListener:
    """The operators' HTTP listener of one server. It serves from `open` until `close`."""

    def __init__(self, operations: AdminOperations, server: uvicorn.Server, listener: socket.socket) -> None:
        """Starts to serve on the bound socket `listener`. Requires a running event loop."""
        self._operations = operations
        self._server = server
        self._serving = asyncio.create_task(server.serve(sockets=[listener]))

    @classmethod
    async def open(
        cls,
        settings: Settings,
        manifest: Manifest,
        store: RevisionStore,
        listener: socket.socket,
        metrics: Metrics,
        *,
        apply: ApplySettings,
        workers: Callable[[], list[WorkerState]],
        check_token: CheckToken,
    ) -> AdminListener:
        """Reads the settings of the operators, calls `apply` with them, and returns the open listener.

        If the store is unreachable, uses the last known settings. listener: a bound socket. The other parameters and
        the errors are those of `AdminOperations.open`.
        """
        operations = await AdminOperations.open(
            settings, manifest, store, metrics, apply=apply, workers=workers, check_token=check_token
        )
        return cls(operations, _AdminUvicorn(_config(settings, operations)), listener)

    def show_model(self, manifest: Manifest) -> None:
        """Sets the model whose name and version are in the responses to operators.

        Must be called after every process has begun to serve this model. manifest: of the model.
        """
        self._operations.show_model(manifest)

    def notify_workers_changed(self) -> None:
        """Reports that the state of a worker has changed. Must be called after each such change.

        A request that changes the settings waits until every ready worker has applied the new revision. After this
        call, each waiting request re-checks the workers.
        """
        self._operations.notify_workers_changed()

    async def close(self) -> None:
        """Stops listening, gives requests in progress one second, and closes the store of the settings."""
        self._server.should_exit = True
        await self._serving
        await self._operations.close()


def create_admin_app(operations: AdminOperations) -> FastAPI:
    """Returns the ASGI application of the operators' listener: the routes of settings, jobs, metrics and console."""
    app = FastAPI(
        title="Tureen, for operators",
        version=tureen.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.operations = operations
    app.add_middleware(RequestLogMiddleware, metrics=operations.metrics)
    app.add_exception_handler(TureenError, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _query_problem)
    router = APIRouter(dependencies=[Depends(authenticate), Depends(refuse_unknown_parameters)])
    add_settings_routes(router, operations)
    add_token_routes(router, operations)

    @router.get("/metrics")
    async def metrics() -> Response:
        body, media_type = operations.metrics.render()
        return Response(body, media_type=media_type)

    add_job_routes(router, operations)
    app.include_router(router)
    add_console(app, lambda: (operations.manifest, operations.current_settings()), is_operators=True)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    detail = next((text for cls, text in _PUBLIC_DETAILS.items() if isinstance(error, cls)), None)
    if isinstance(error, ControlStoreError):
        logger.error("a request of an operator failed: %s", error)
    return await tureen_error_response(request, error, detail)


async def _http_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = http_problem_type(error.status_code)
    access_fields(request.scope)["code"] = kind.code
    return problem_response(kind, kind.title, dict(error.headers or {}))


async def _query_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    name = str(error.errors()[0]["loc"][-1])[:40]
    return await _problem(request, InvalidParameterError(f"the parameter {name} has an invalid value"))


def _config(settings: Settings, operations: AdminOperations) -> uvicorn.Config:
    limits = ConnectionLimits(hosts=trusted_hosts(settings.allowed_hosts, settings.admin_host))
    return uvicorn_config(
        create_admin_app(operations),
        limits=limits,
        check_admission=lambda method, path: None,
        metrics=operations.metrics,
        has_lifespan=False,
        keep_alive_s=settings.keep_alive_s,
        drain_timeout_s=1,  # a request that waits for a revision must not delay the end of the server
    )


class _AdminUvicorn(uvicorn.Server):
    """A uvicorn server that handles no signals, because the public server of the process handles them."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = DrainingState()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
