"""`tureen serve`: reads the settings, binds the listeners, and runs one process or a supervisor of several."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from serve.admin.listener import AdminListener
from serve.connection.graceful_shutdown import check_uvicorn
from serve.connection.sockets import bind, hold_port
from serve.control.revision_store import open_store
from serve.errors import GrpcPortTakenError, PortError
from serve.processes.single import SingleProcess
from serve.processes.supervisor import supervise
from serve.settings import Settings, grpc_address
from serve.settings_sources import parse_settings
from serve.telemetry.logs import configure_logs
from tureen.bundle.bundle import load_bundle
from tureen.machine import is_temporary
from tureen.remote.address import parse_address
from tureen.remote.locate import locate_bundle

logger = logging.getLogger("tureen.serve")


def serve(arguments: list[str]) -> int:
    """Runs `tureen serve`. arguments: those after `tureen serve`.

    Returns the exit status. Raises the errors of `parse_settings`, and those of `run_server` except PortError: it logs
    that error, and returns 1.
    """
    try:
        return run_server(parse_settings(arguments))
    except PortError as error:
        logger.error("%s", error)
        return 1


def run_server(settings: Settings, on_ready: Callable[[int, int], None] = lambda port, admin_port: None) -> int:
    """Serves the bundle until SIGTERM or SIGINT stops the server, and returns the exit status.

    The status is 1 if the port of gRPC is taken, if no engine can be opened, or if a worker dies while the server
    stops; else 0. The port responds before the engine is ready, so that /healthz and /readyz distinguish a slow start
    from a dead process. on_ready: receives the port and that of the operators' listener when the engine is ready.
    Raises PortError if one of the two is taken or not available, and BundleError if the bundle is missing or damaged.
    Raises SingleTokenError if --default-beta is set and the model has one token. Raises ControlStoreError if the URL
    --store is invalid, and UvicornVersionError if the installed uvicorn is not supported. With several workers, raises
    AdminListenerError if other machines can reach the operators' listener and there is no credential for them.
    """
    configure_logs(settings.log_level)
    check_uvicorn()
    if is_temporary(settings.state_dir):
        logger.warning(
            "the home directory is not writable: the operator's settings and token are in %s until the server ends; "
            "give --state-dir to keep them", settings.state_dir,
        )  # fmt: skip
    bundle = load_bundle(locate_bundle(settings.bundle, cache=settings.cache_dir))
    if parse_address(settings.bundle) is None:  # the path of an example; an address is resolved again by a reload
        settings = settings.model_copy(update={"bundle": bundle.path})
    try:
        listeners = bind(settings.host, settings.port, settings.workers)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PortError(settings.host, settings.port, reason, is_admin=False) from None
    port = listeners[0].getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d", host, port)
    admin_port = settings.admin_port if settings.admin_port is not None else (port + 1) % 65536
    try:
        (admin,) = bind(settings.admin_host, admin_port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PortError(settings.admin_host, admin_port, reason, is_admin=True) from None
    admin_port = admin.getsockname()[1]
    logger.info("listening for operators on http://%s:%d", settings.admin_host, admin_port)
    store = open_store(settings, bundle.manifest.name)
    open_admin = partial(AdminListener.open, settings, bundle.manifest, store, admin)
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
                settings, bundle.path, listeners, on_ready=lambda: on_ready(port, admin_port), open_admin=open_admin
            )
    return SingleProcess(
        settings, bundle, listeners, on_ready=lambda: on_ready(port, admin_port), open_admin=open_admin
    ).run()
