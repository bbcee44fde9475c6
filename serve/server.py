"""`tureen serve`: one process that answers requests until it is told to stop, or the supervisor of several."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.admin.operations import AdminOperations
from serve.connection.graceful_shutdown import check_uvicorn
from serve.connection.sockets import bind, hold_port
from serve.errors import GrpcPortTakenError
from serve.processes.single import SingleProcess
from serve.processes.supervisor import supervise
from serve.settings import Settings, grpc_address, parse_settings
from serve.telemetry.logs import configure_logs
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle
from tureen.machine import is_temporary

if TYPE_CHECKING:
    pass

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
                open_desk=lambda metrics: AdminOperations(settings, bundle, admin, Metrics(metrics)),
            )
    return SingleProcess(settings, bundle, listeners, on_ready=lambda: on_ready(port), admin=admin).run()
