"""The operator's side of one server: its store, its credentials, and the listener where settings are changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
import uvicorn

from serve.connection.graceful_shutdown import DrainingState
from serve.connection.http_connection import protocol_class
from serve.control.beta_choice import ActiveSettings
from serve.control.change import SettingsChange
from serve.control.credential_store import Credential, Credentials, make_secret
from serve.control.replica import SettingsReplica
from serve.control.revision_store import Revision, RevisionStore
from serve.control.settings_state import SettingsState
from serve.control.state_directory import (
    LAST_KNOWN_FILE,
    STORE_FILE,
    earlier_last_known,
    locked,
    make_state_directory,
    prepare_store_file,
)
from serve.control.worker_state import ApplySettings, WorkerState
from serve.errors import AdminListenerError, ControlStoreError, InvalidChangeError
from serve.inference.service import initial_settings
from serve.jobs.job_store import JobRecords
from serve.jobs.rooted_files import RootedFiles
from serve.limits import ConnectionLimits, is_loopback, trusted_hosts
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.atomic_file import write_atomically
from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import Manifest
from tureen.errors import SingleTokenError

LOCAL = "local"  # the credential of whoever can read the server's state directory
TOKEN_FILE = "admin-token"  # noqa: S105 - a name

FOLLOWED_S = 1.0
RETRY_S = 1.0
LOOK_S = 0.002

logger = logging.getLogger("tureen.admin")


class AdminOperations:
    """Where an operator changes the settings of one server."""

    def __init__(self, settings: Settings, bundle: Bundle, listener: socket.socket, metrics: Metrics) -> None:
        """bundle: what is served first. metrics: the server's, of all its processes. Raises ControlStoreError for a
        --store that no store can have.
        """
        self.metrics = metrics
        self._settings = settings
        self.shows(bundle.manifest)
        self._listener = listener
        self.store = open_store(settings, bundle.manifest.name)
        self._credentials = Credentials(self.store)
        self.plane = SettingsReplica(
            self.store,
            settings.state_dir / LAST_KNOWN_FILE,
            earlier_last_known(settings.state_dir, bundle.manifest.name, has_own_store=settings.store is None),
        )
        self.jobs: tuple[JobRecords, RootedFiles] | None = None
        if settings.takes_jobs:
            self.jobs = JobRecords(self.store), RootedFiles(settings.job_input_roots, settings.job_output_roots)
        self.max_jobs = settings.max_jobs
        self._is_reachable = asyncio.Event()
        self._are_credentials_prepared = False
        self._preparing: asyncio.Task[None] | None = None

    def shows(self, manifest: Manifest) -> None:
        """Have operators see this model: every process serves it from now on."""
        self.manifest = manifest
        self._own = initial_settings(manifest, self._settings.default_beta)
        self.own_source = self._own.own_source

    async def open(self, follow: ApplySettings, workers: Callable[[], list[WorkerState]]) -> None:
        """Have the settings followed, then listen, also while the store cannot be reached.

        Raises AdminListenerError if the store can be reached and holds no credential for an address of everybody's.
        """
        self.workers = workers
        await asyncio.to_thread(self._make_state_directory)
        await self.plane.open()
        if self.plane.unreachable_since is None:
            try:
                await self._prepare_credentials()
            except ControlStoreError as error:
                logger.error("%s", error)
            except AdminListenerError:
                await self._close_store()
                raise

        def told(row: Revision) -> None:
            follow(row, self.plane.unreachable_since is None)

        def on_reachable(is_reachable: bool) -> None:
            follow(self.plane.head, is_reachable)
            (self._is_reachable.set if is_reachable else self._is_reachable.clear)()

        self.plane.tell(told, on_reachable)
        if not self._are_credentials_prepared:
            self._preparing = asyncio.create_task(self._prepare_when_reachable())
        self._server = _AdminServer(self._config())
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def close(self) -> None:
        """Listen no more, and follow no more."""
        self._server.should_exit = True
        await self._serving
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        await self._close_store()

    async def _close_store(self) -> None:
        await self.plane.close()
        await asyncio.to_thread(self.store.close)

    async def credential_of(self, secret: str) -> Credential | None:
        """Whom a bearer token stands for; where the store cannot be reached, or lies behind, by what was last known.

        Raises ControlStoreError if the credentials were never read, AdminListenerError if the listener must not let
        anybody in.
        """
        if self.plane.unreachable_since is None:
            await self.plane.refresh()
        known = self.plane.credentials
        if known is None:
            self.plane.check()
            return None
        refuse_open_listener(known, self._settings)
        return self._credentials.among(known, secret)

    async def _prepare_credentials(self) -> None:
        await asyncio.to_thread(prepare_credentials, self._credentials, self._settings)
        self._are_credentials_prepared = True
        await self.plane.refresh()

    async def _prepare_when_reachable(self) -> None:
        """Make the first credential of a service whose store could not be reached when the server started."""
        while not self._are_credentials_prepared:
            await self._is_reachable.wait()
            try:
                await self._prepare_credentials()
            except ControlStoreError:
                await asyncio.sleep(RETRY_S)
            except AdminListenerError as error:  # a server that answers requests does not end for it
                logger.error("%s; until then the listener refuses every request", error)
                return

    def _make_state_directory(self) -> None:
        try:
            make_state_directory(self._settings.state_dir)
        except ControlStoreError as error:
            logger.error("%s", error)

    async def followed(self, revision: int) -> None:
        """Return once every ready process follows that revision, so that who asks it after an acknowledged change
        gets the change; after FOLLOWED_S at the latest, since a stuck process must not hold an operator up.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOWED_S):
                while any(worker.is_ready and worker.revision < revision for worker in self.workers()):
                    await asyncio.sleep(LOOK_S)

    def shown(self) -> tuple[Manifest, ActiveSettings]:
        """The model, and what is in force."""
        return self.manifest, replace(self._own, revision=self.plane.head.revision, state=self.plane.state)

    def effective(self, state: SettingsState) -> float | None:
        """The default β under that state; None where the model has one token."""
        return replace(self._own, state=state).default.beta

    def refuse_beta(self, change: SettingsChange) -> None:
        """Raises SingleTokenError: the model has no β for an operator to choose."""
        raise SingleTokenError("default_beta" if "default_beta" in change.model_fields_set else "bounds and policies")

    def _config(self) -> uvicorn.Config:
        from serve.admin.settings_routes import create_admin_app

        limits = ConnectionLimits(hosts=trusted_hosts(self._settings.allowed_hosts, self._settings.admin_host))
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


def open_store(settings: Settings, model: str) -> RevisionStore:
    """The store at the URL given, else the file in the state directory; raises ControlStoreError for a wrong URL.

    model: whose name earlier versions gave to that file.
    """
    if settings.store is not None:
        return RevisionStore(settings.store)
    url = sa.URL.create("sqlite", database=str(settings.state_dir / STORE_FILE))
    return RevisionStore(url, before_first_use=lambda: prepare_store_file(settings.state_dir, model))


def refuse_open_listener(known: Sequence[Credential], settings: Settings) -> None:
    """Raises AdminListenerError if others can reach the listener and no credential was made for them.

    The credential in the state directory is for this machine: an address of everybody's needs another one.
    """
    if not is_loopback(settings.admin_host) and all(credential.name == LOCAL for credential in known):
        raise AdminListenerError(
            f"--admin-host {settings.admin_host} can be reached from elsewhere, and no credential was made: run "
            "`tureen credentials BUNDLE make NAME` first, or leave it at 127.0.0.1"
        )


def prepare_credentials(credentials: Credentials, settings: Settings) -> None:
    """Make the first credential if there is none, and keep its token in a file of the state directory.

    Of several servers that start on an empty store one makes it; the others have no token in their directories. Raises
    ControlStoreError or AdminListenerError.
    """
    make_state_directory(settings.state_dir)
    known = credentials.all()
    refuse_open_listener(known, settings)
    if known:
        return
    file = settings.state_dir / TOKEN_FILE
    try:
        secret, is_made = _read_or_make(file)
    except OSError as error:
        raise ControlStoreError(f"the operator's token cannot be kept in {file}: {error.strerror}") from None
    if credentials.is_revoked(secret):
        logger.warning("nobody has a credential, and %s was revoked: run `tureen credentials BUNDLE make NAME`", file)
        return
    try:
        credentials.make(LOCAL, "operate", secret)
    except InvalidChangeError:  # another server was first
        if credentials.of(secret) is None:
            if is_made:
                file.unlink(missing_ok=True)
            logger.info("the operator's token is in the state directory of the server that started first")
            return
    logger.info("the operator's token is in %s", file)


def _read_or_make(file: Path) -> tuple[str, bool]:
    """The token in the file, and whether this process made it. Raises OSError or ControlStoreError."""
    with locked(file.parent):  # or another process would read a file that is not written yet
        is_made = not file.exists()
        if is_made:
            write_atomically(file, f"{make_secret()}\n".encode(), mode=0o600)
        return file.read_text("utf-8-sig").strip(), is_made
