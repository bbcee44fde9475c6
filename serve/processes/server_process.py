"""The base class of every process that serves a bundle.

It opens the service with its engine, the gRPC server and the runner of batch jobs, and closes them at the end.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from serve.api.admission_check import make_admission_check
from serve.api.app import create_app
from serve.connection.graceful_shutdown import DrainingServer
from serve.connection.sockets import allow_open_files
from serve.connection.uvicorn_config import uvicorn_config
from serve.control.revision_store import open_store
from serve.errors import ControlStoreError, GrpcPortTakenError
from serve.inference.memory import collect_rarely, return_large_blocks
from serve.inference.service import Service
from serve.oip.statistics import Statistics
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import Bundle
from tureen.errors import EngineError, TokenFileError, TureenError

if TYPE_CHECKING:
    from serve.jobs.runner import JobRunner
    from serve.oip.grpc_server import GrpcServer
    from serve.telemetry.tracing import Tracing

logger = logging.getLogger("tureen.serve")


class ServerProcess:
    """Serves a bundle over HTTP in this process, and over gRPC if --grpc-port is set.

    A subclass applies the operator's settings, and decides when listeners accept connections.
    """

    handles_signals = True
    shares_ports = False  # with other processes

    def __init__(
        self, settings: Settings, bundle: Bundle, listeners: Sequence[socket.socket], metrics: Metrics
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # otherwise each series has a second one, _created
        metrics.process_starts.inc()
        return_large_blocks()
        collect_rarely()
        allow_open_files(settings.max_connections)
        self.service = Service(settings, bundle, metrics)
        self._has_failed = False
        self._grpc: GrpcServer | None = None
        self._jobs: JobRunner | None = None
        self._opening: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tracing = open_tracing(settings.otlp_endpoint)
        self._app = create_app(self.service, self._close_last, self._tracing)
        config = uvicorn_config(
            self._app,
            limits=settings.connection_limits,
            check_admission=make_admission_check(self.service),
            metrics=metrics,
            has_lifespan=True,
            keep_alive_s=settings.keep_alive_s,
            drain_timeout_s=settings.drain_timeout_s,
        )
        self.server = DrainingServer(
            config,
            listeners,
            delay_s=settings.drain_delay_s,
            on_start=self._start,
            on_drain=self.service.drain,
            handles_signals=self.handles_signals,
        )

    async def begin(self) -> None:
        """Opens the additional parts of a subclass, such as the operators' listener.

        Runs before the first connection is accepted. A subclass must override this method. The subclass makes the
        server accept connections, here or later.
        """
        raise NotImplementedError

    async def end(self) -> None:
        """Closes the parts that `begin` has opened. Runs after the last response. Does nothing by default."""

    def become_ready(self) -> None:
        """Reports that the process is ready. Called once, when the engine is open and has reproduced the golden rows.

        A subclass must override this method.
        """
        raise NotImplementedError

    def start_task(self, work: Coroutine[None, None, None]) -> None:
        """Runs the coroutine as a task, and keeps the task until it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop holds tasks by weak references
        task.add_done_callback(self._tasks.discard)

    def run(self) -> int:
        """Serves until the server has drained. Blocks. Returns the exit status of the process.

        The status is 1 if the engine, the gRPC server, the runner of jobs or the operators' listener could not be
        opened, else 0.
        """
        self.server.run()
        return int(self._has_failed)

    async def reload(self, bundle: Path | None = None) -> bool:
        """Loads the bundle again and serves it. Returns whether this succeeded.

        bundle: as for `Service.reload`.
        If the reload fails, logs the error, and the process still serves the previous bundle.
        """
        async with self._reloading:
            if self._opening is not None:
                await self._opening
            try:
                await self.service.reload(bundle)
            except TureenError as error:
                logger.error("reload failed, the previous bundle is still served: %s", error)
            except Exception:
                logger.exception("reload failed, the previous bundle is still served")
            else:
                self.service.metrics.reloads.labels("ok").inc()
                return True
            self.service.metrics.reloads.labels("failed").inc()
            return False

    async def _start(self) -> None:
        await self.begin()
        if not self._has_failed:
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            await self.service.open()
            if self.service.settings.grpc_port is not None:
                self._grpc = await open_grpc(
                    self.service, self._app.state.statistics, self._tracing, shares_port=self.shares_ports
                )
            if self.service.settings.takes_jobs:
                self._jobs = await open_jobs(self.service)
            self.become_ready()
            return
        except (EngineError, TokenFileError, GrpcPortTakenError, ControlStoreError) as error:
            logger.error("%s", error)
        except Exception:
            logger.exception("the engine could not be opened")
        self._has_failed = True
        self.server.drain(skip_delay=True)

    @asynccontextmanager
    async def _close_last(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        if self._opening is not None:
            await self._opening
        if self._grpc is not None:
            await self._grpc.close(self.service.settings.drain_timeout_s)
        if self._jobs is not None:
            await self._jobs.close()
        await self.service.close()
        await self.end()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Returns the exporter of traces to the OTLP endpoint; None if `endpoint` is None.

    This function, not the module, imports the exporter, because the exporter needs the extra [otel].
    """
    if endpoint is None:
        return None
    from serve.telemetry.tracing import Tracing

    return Tracing(endpoint)


async def open_jobs(service: Service) -> JobRunner:
    """Starts the runner of batch jobs, and returns it. Raises ControlStoreError if the URL of the store is invalid.

    This function, not the module, imports the runner, because the runner needs the extra [batch].
    """
    from serve.jobs.runner import JobRunner

    runner = JobRunner(service, open_store(service.settings, service.bundle.manifest.name))
    await runner.open()
    return runner


async def open_grpc(
    service: Service, statistics: Statistics, tracing: Tracing | None, *, shares_port: bool
) -> GrpcServer:
    """Starts the gRPC server, and returns it. Raises GrpcPortTakenError if the server cannot listen on its port.

    shares_port: whether other processes listen on the same port. This function, not the module, imports the server,
    because the server needs the extra [grpc].
    """
    from serve.oip.grpc_server import GrpcServer

    server = GrpcServer(service, statistics, shares_port=shares_port, tracing=tracing)
    port = await server.open()
    logger.info("gRPC listens on port %d", port)
    return server
