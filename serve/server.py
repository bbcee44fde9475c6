"""Runs the application under uvicorn until it is told to stop, finishing what was accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from serve.app import create_app
from serve.logs import configure_logs
from serve.metrics import Metrics
from serve.oip.errors import PortTakenError
from serve.oip.statistics import Statistics
from serve.service import Service
from serve.settings import Settings, parse_settings
from tureen.bundle import load_bundle
from tureen.errors import EngineError

if TYPE_CHECKING:
    from serve.oip.rpc import RpcServer

logger = logging.getLogger("tureen.serve")


def serve(arguments: list[str]) -> int:
    """`tureen serve`: 0 after SIGTERM or SIGINT, 1 where no engine could be opened or the port is taken."""
    return run_server(parse_settings(arguments))


def run_server(settings: Settings, on_ready: Callable[[int], None] = lambda port: None) -> int:
    """Load the bundle, listen, make the engine ready, serve; returns the exit status. Raises BundleError.

    The port answers from the start, so that /healthz and /readyz tell a slow load from a dead process. on_ready is
    called with the port once requests are answered.
    """
    configure_logs(settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call] # or every series would come twice
    service = Service(settings, load_bundle(settings.bundle), Metrics())
    failed = False

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rpc: RpcServer | None = None

        async def make_ready() -> None:
            nonlocal failed, rpc
            try:
                await service.open()
                if settings.grpc_port is not None:
                    rpc = await open_rpc(service, app.state.statistics)
                on_ready(listener.getsockname()[1])
            except (EngineError, PortTakenError) as error:
                logger.error("%s", error)
                failed = server.should_exit = True
            except Exception:
                logger.exception("the engine could not be opened")
                failed = server.should_exit = True

        task = asyncio.create_task(make_ready())
        yield
        await task
        if rpc is not None:
            await rpc.close(settings.drain_timeout_s)
        await service.close()

    config = uvicorn.Config(
        create_app(service, lifespan),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    server = uvicorn.Server(config)
    try:
        listener = config.bind_socket()
    except SystemExit:  # how uvicorn ends where it cannot listen; it has logged why
        return 1
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains and then raises the signal anew; with this handler in place that ends in an exit status.
        signal.signal(signal_number, server.handle_exit)
    server.run(sockets=[listener])
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)  # a second one must not turn a clean exit into a crash
    return int(failed)


async def open_rpc(service: Service, statistics: Statistics) -> RpcServer:
    """gRPC, listening; imported here, since the extra that it needs is not everybody's. Raises PortTakenError."""
    from serve.oip.rpc import RpcServer

    server = RpcServer(service, statistics)
    port = await server.open()
    logger.info("gRPC listens on port %d", port)
    return server
