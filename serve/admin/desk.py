"""The operator's side of one server: its store, its credentials, and the listener where settings are changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import uvicorn

from serve.admin.errors import AdminListenerError
from serve.control.change import Change
from serve.control.choice import InForce
from serve.control.credentials import Credential, Credentials, make_secret
from serve.control.desk import Follow, WorkerState
from serve.control.errors import ControlStoreError
from serve.control.plane import ControlPlane
from serve.control.state import ControlState
from serve.control.store import Revision, Store
from serve.draining import DrainingState
from serve.jobs.files import Rooted
from serve.jobs.records import JobRecords
from serve.metrics import Metrics
from serve.protocol import protocol_class
from serve.service import in_force
from serve.settings import Settings
from serve.wire import WireLimits, is_loopback, trusted_hosts
from tureen.bundle import Bundle
from tureen.errors import SingleTokenError
from tureen.manifest import Manifest

LOCAL = "local"  # the credential of whoever can read the server's state directory
TOKEN_FILE = "admin-token"  # noqa: S105 - a name

FOLLOWED_S = 1.0
LOOK_S = 0.002

logger = logging.getLogger("tureen.admin")


class AdminDesk:
    """Where an operator changes the settings of one server."""

    def __init__(self, settings: Settings, bundle: Bundle, listener: socket.socket, metrics: Metrics) -> None:
        """metrics: the server's, of all its processes."""
        self.metrics = metrics
        self.manifest = bundle.manifest
        self._own = in_force(bundle, settings.default_beta)
        self.own_source = self._own.own_source
        self._settings = settings
        self._listener = listener
        self._known: list[Credential] = []
        self.jobs: tuple[JobRecords, Rooted] | None = None
        self.max_jobs = settings.max_jobs

    async def open(self, follow: Follow, workers: Callable[[], list[WorkerState]]) -> None:
        """Have the settings followed, then listen; raises ControlStoreError."""
        self.workers = workers
        self.store = await asyncio.to_thread(Store, store_url(self._settings, self.manifest.name))
        self._credentials = await asyncio.to_thread(Credentials, self.store)
        if self._settings.takes_jobs:
            files = Rooted(self._settings.job_input_roots, self._settings.job_output_roots)
            self.jobs = await asyncio.to_thread(JobRecords, self.store), files
        await asyncio.to_thread(prepare_credentials, self._credentials, self._settings)
        self._known = await asyncio.to_thread(self._credentials.all)
        snapshot = self._settings.state_dir / f"{self.manifest.name}.last-known.json"
        self.plane = ControlPlane(self.store, snapshot)
        await self.plane.open()

        def told(row: Revision) -> None:
            follow(row, self.plane.unreachable_since is None)

        self.plane.tell(told, lambda is_reachable: follow(self.plane.head, is_reachable))
        self._server = _AdminServer(self._config())
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def close(self) -> None:
        """Listen no more, and follow no more."""
        self._server.should_exit = True
        await self._serving
        await self.plane.close()
        await asyncio.to_thread(self.store.close)

    async def credential_of(self, secret: str) -> Credential | None:
        """Whom a bearer token stands for; where the store cannot be reached, or lies behind, by what was last known."""
        with contextlib.suppress(ControlStoreError):
            revision, known = await asyncio.to_thread(self._look)
            if revision >= self.plane.head.revision:
                self._known = known
        return self._credentials.among(self._known, secret)

    def _look(self) -> tuple[int, list[Credential]]:
        return self.store.head().revision, self._credentials.all()

    async def followed(self, revision: int) -> None:
        """Return once every ready process follows that revision, so that who asks it after an acknowledged change
        gets the change; after FOLLOWED_S at the latest, since a stuck process must not hold an operator up.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOWED_S):
                while any(worker.is_ready and worker.revision < revision for worker in self.workers()):
                    await asyncio.sleep(LOOK_S)

    def shown(self) -> tuple[Manifest, InForce]:
        """The model, and what is in force."""
        return self.manifest, replace(self._own, revision=self.plane.head.revision, state=self.plane.state)

    def effective(self, state: ControlState) -> float | None:
        """The default β under that state; None where the model has one token."""
        return replace(self._own, state=state).default.beta

    def refuse_beta(self, change: Change) -> None:
        """Raises SingleTokenError: the model has no β for an operator to choose."""
        raise SingleTokenError("default_beta" if "default_beta" in change.model_fields_set else "bounds and policies")

    def _config(self) -> uvicorn.Config:
        from serve.admin.app import create_admin_app

        limits = WireLimits(hosts=trusted_hosts(self._settings.allowed_hosts, self._settings.admin_host))
        return uvicorn.Config(
            create_admin_app(self),
            http=protocol_class(limits, lambda method, path: None, self.metrics),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._settings.keep_alive_s,
            timeout_graceful_shutdown=1,  # whoever waits for a revision waits in vain
        )


class _AdminServer(uvicorn.Server):
    """Ends with the server it belongs to, and by no signal."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = DrainingState()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def store_url(settings: Settings, model: str) -> str:
    """The URL given, else a file of the model's in the state directory, which is made."""
    if settings.store is not None:
        return settings.store
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ControlStoreError(
            f"the state directory {settings.state_dir} cannot be made ({error.strerror}): give --state-dir or --store"
        ) from None
    return f"sqlite:///{settings.state_dir / model}.db"


def prepare_credentials(credentials: Credentials, settings: Settings) -> None:
    """Where nobody has a credential yet, let in whoever can read the state directory: its file holds the token.

    Raises AdminListenerError where others could reach the listener and no credential was made for them: on an address
    of everybody's nothing must begin with what happens to lie in a file.
    """
    known = credentials.all()
    if not is_loopback(settings.admin_host) and all(credential.name == LOCAL for credential in known):
        raise AdminListenerError(
            f"--admin-host {settings.admin_host} can be reached from elsewhere, and no credential was made: run "
            "`tureen credentials BUNDLE make NAME` first, or leave it at 127.0.0.1"
        )
    if known:
        return
    file = settings.state_dir / TOKEN_FILE
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = _read_or_make(file)
    if credentials.is_revoked(secret):
        logger.warning("nobody has a credential, and %s was revoked: run `tureen credentials BUNDLE make NAME`", file)
        return
    credentials.make(LOCAL, "operate", secret)
    logger.info("the operator's token is in %s", file)


def _read_or_make(file: Path) -> str:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as new:
            new.write(make_secret() + "\n")
    return file.read_text("utf-8-sig").strip()
