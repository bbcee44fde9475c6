"""`tureen serve`: one process that answers requests until it is told to stop, or the supervisor of several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from serve.admin.operations import AdminDesk, open_store
from serve.api.admission_gate import gate_of
from serve.api.app import create_app
from serve.connection.graceful_shutdown import DrainingServer, check_uvicorn
from serve.connection.http_connection import protocol_class
from serve.connection.sockets import allow_open_files, bind, hold_port
from serve.control.revision_store import Revision
from serve.control.worker_state import WorkerState
from serve.errors import ControlStoreError, GrpcPortTakenError
from serve.inference.service import Service
from serve.oip.statistics import Statistics
from serve.processes.memory import return_large_blocks
from serve.processes.supervisor import supervise
from serve.settings import Settings, grpc_address, parse_settings
from serve.telemetry.logs import configure_logs
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.errors import EngineError, TureenError
from tureen.machine import is_temporary

if TYPE_CHECKING:
    from serve.jobs.runner import JobRunner
    from serve.oip.rpc import RpcServer
    from serve.telemetry.tracing import Tracing

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
    check_uvicorn()
    if is_temporary(settings.state_dir):
        logger.warning(
            "there is no home directory to write to: the operator's settings and token are in %s until the server "
            "ends; give --state-dir", settings.state_dir,
        )  # fmt: skip
    bundle = load_bundle(settings.bundle)
    try:
        listeners = bind(settings.host, settings.port, settings.workers)
    except OSError as error:
        logger.error("cannot listen on %s port %d: %s", settings.host, settings.port, error.strerror or error)
        return 1
    port = listeners[0].getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d", host, port)
    admin_port = settings.admin_port if settings.admin_port is not None else (port + 1) % 65536
    try:
        (admin,) = bind(settings.admin_host, admin_port)
    except OSError as error:
        logger.error(
            "cannot listen for operators on %s port %d: %s; give another --admin-port",
            settings.admin_host, admin_port, error.strerror or error,
        )  # fmt: skip
        return 1
    logger.info("operators reach http://%s:%d", settings.admin_host, admin.getsockname()[1])
    if settings.workers > 1:
        with contextlib.ExitStack() as stack:
            if settings.grpc_port is not None:
                try:
                    holder = stack.enter_context(hold_port(settings.host, settings.grpc_port))
                except OSError:
                    logger.error("%s", GrpcPortTakenError(grpc_address(settings)))
                    return 1
                settings = settings.model_copy(update={"grpc_port": holder.getsockname()[1]})
            return supervise(
                settings,
                listeners,
                on_ready=lambda: on_ready(port),
                open_desk=lambda metrics: AdminDesk(settings, bundle, admin, Metrics(metrics)),
            )
    return OnlyProcess(settings, bundle, listeners, on_ready=lambda: on_ready(port), admin=admin).run()


class ServerProcess:
    """A bundle served by this process. Who starts it says from which listeners, and what its signals mean."""

    obeys_signals = True
    shares_ports = False  # with other processes

    def __init__(
        self, settings: Settings, bundle: Bundle, listeners: Sequence[socket.socket], metrics: Metrics
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # or every series would come twice
        metrics.process_starts.inc()
        return_large_blocks()
        allow_open_files(settings.max_connections)
        self.service = Service(settings, bundle, metrics)
        self._has_failed = False
        self._rpc: RpcServer | None = None
        self._jobs: JobRunner | None = None
        self._opening: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._tracing = open_tracing(settings.otlp_endpoint)
        self._app = create_app(self.service, self._close_last, self._tracing)
        config = uvicorn.Config(
            self._app,
            loop="uvloop",
            http=protocol_class(settings.wire_limits, gate_of(self.service), metrics),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody here asks for the client's address
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
        self.server = DrainingServer(
            config,
            listeners,
            delay_s=settings.drain_delay_s,
            on_start=self._start,
            on_drain=self.service.drain,
            obeys_signals=self.obeys_signals,
        )

    async def begin(self) -> None:
        """Called in the loop before anything is accepted."""
        raise NotImplementedError

    async def end(self) -> None:
        """Called in the loop after the last answer."""

    def become_ready(self) -> None:
        """Called when the engine has reproduced the golden rows."""
        raise NotImplementedError

    def run(self) -> int:
        """Serve until told to stop; 0 then, 1 where no engine could be opened."""
        self.server.run()
        return int(self._has_failed)

    async def reload(self) -> bool:
        """Serve the bundle that lies there now; where it is no good, go on with the one there is, and say so."""
        async with self._reloading:
            if self._opening is not None:
                await self._opening
            try:
                await self.service.reload()
            except TureenError as error:
                logger.error("reload failed, the bundle served so far serves on: %s", error)
            except Exception:
                logger.exception("reload failed, the bundle served so far serves on")
            else:
                self.service.metrics.reloads.labels("ok").inc()
                return True
            self.service.metrics.reloads.labels("failed").inc()
            return False

    async def _start(self) -> None:
        await self.begin()
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            await self.service.open()
            if self.service.settings.grpc_port is not None:
                self._rpc = await open_rpc(
                    self.service, self._app.state.statistics, self._tracing, shares_port=self.shares_ports
                )
            if self.service.settings.takes_jobs:
                self._jobs = await open_jobs(self.service)
            self.become_ready()
            return
        except (EngineError, GrpcPortTakenError, ControlStoreError) as error:
            logger.error("%s", error)
        except Exception:
            logger.exception("the engine could not be opened")
        self._has_failed = True
        self.server.drain(at_once=True)

    @asynccontextmanager
    async def _close_last(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        if self._opening is not None:
            await self._opening
        if self._rpc is not None:
            await self._rpc.close(self.service.settings.drain_timeout_s)
        if self._jobs is not None:
            await self._jobs.close()
        await self.service.close()
        await self.end()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


class OnlyProcess(ServerProcess):
    """A server in one process: SIGTERM and SIGINT drain it, SIGHUP reloads the bundle."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        listeners: Sequence[socket.socket],
        on_ready: Callable[[], None],
        admin: socket.socket,
    ) -> None:
        metrics = Metrics()
        super().__init__(settings, bundle, listeners, metrics)
        self._on_ready = on_ready
        self._desk = AdminDesk(settings, bundle, admin, metrics)
        self._is_operated = False
        self._reload: asyncio.Task[bool] | None = None

    async def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            await self._desk.open(self._follow, self._states)
        except TureenError as error:
            logger.error("%s", error)
            self._has_failed = True
            self.server.drain(at_once=True)
            return
        self._is_operated = True
        await self.server.accept_from({0})

    def become_ready(self) -> None:
        self._on_ready()

    def run(self) -> int:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            # Before uvicorn's handlers and after them: neither an early nor a late signal is another end than draining.
            signal.signal(signal_number, self.server.handle_exit)
        status = super().run()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, signal.SIG_IGN)  # a second one must not turn a clean exit into a crash
        return status

    async def reload(self) -> bool:
        is_reloaded = await super().reload()
        self._desk.shows(self.service.bundle.manifest)
        return is_reloaded

    async def end(self) -> None:
        if self._is_operated:
            await self._desk.close()

    def _follow(self, row: Revision, is_reachable: bool) -> None:
        self.service.follow(row.revision, row.state)
        self.service.metrics.control_reachable.set(is_reachable)

    def _states(self) -> list[WorkerState]:
        manifest = self.service.bundle.manifest
        model = f"{manifest.name} {manifest.version}"
        return [WorkerState(0, os.getpid(), self.service.is_ready, self.service.in_force.revision, model)]

    def _reload_soon(self) -> None:
        self._reload = asyncio.get_running_loop().create_task(self.reload())


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Where traces go; imported here, since the extra that it needs is not everybody's."""
    if endpoint is None:
        return None
    from serve.telemetry.tracing import Tracing

    return Tracing(endpoint)


async def open_jobs(service: Service) -> JobRunner:
    """The runner of batch jobs, looking for some; imported here, since the extra that it needs is not everybody's."""
    from serve.jobs.runner import JobRunner

    runner = JobRunner(service, open_store(service.settings, service.bundle.manifest.name))
    await runner.open()
    return runner


async def open_rpc(
    service: Service, statistics: Statistics, tracing: Tracing | None, *, shares_port: bool
) -> RpcServer:
    """gRPC, listening; imported here, since the extra that it needs is not everybody's. Raises GrpcPortTakenError."""
    from serve.oip.rpc import RpcServer

    server = RpcServer(service, statistics, shares_port=shares_port, tracing=tracing)
    port = await server.open()
    logger.info("gRPC listens on port %d", port)
    return server
