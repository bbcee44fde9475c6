"""Reads and changes the settings, credentials and jobs of one server for the operators' listener. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from serve.admin.local_credential import prepare_credentials, refuse_open_listener
from serve.control.beta_choice import ActiveSettings, BetaSource
from serve.control.change import SettingsChange
from serve.control.credential_store import Credential, Credentials
from serve.control.replica import SettingsReplica
from serve.control.revision_store import Revision, RevisionStore
from serve.control.settings_state import SettingsState
from serve.control.state_directory import (
    LAST_KNOWN_FILE,
    TOKEN_DIRECTORY,
    earlier_last_known,
    make_state_directory,
)
from serve.control.token_cache import TokenCache
from serve.control.worker_state import ApplySettings, CheckToken, WorkerState
from serve.errors import AdminListenerError, ControlStoreError
from serve.inference.service import initial_settings
from serve.jobs.job_store import JobRecords
from serve.jobs.rooted_files import RootedFiles
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.manifest import Manifest
from tureen.errors import SingleTokenError
from tureen.tokens import Mix

APPLY_TIMEOUT_S = 1.0
RETRY_S = 1.0

logger = logging.getLogger("tureen.admin")


class AdminOperations:
    """The operations of the operators' listener on one server. Call `open` for an instance, and `close` at the end."""

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        replica: SettingsReplica,
        metrics: Metrics,
        workers: Callable[[], list[WorkerState]],
        check_token: CheckToken,
    ) -> None:
        """replica: holds the settings in force, and follows the store. The other parameters are those of `open`.

        Raises SingleTokenError if --default-beta is set and the model has one token.
        """
        self.store = replica.store
        self.replica = replica
        self.metrics = metrics
        self.workers = workers
        self.check_token = check_token
        self.token_cache = TokenCache(settings.state_dir / TOKEN_DIRECTORY)
        self.max_tokens = settings.max_tokens
        self.max_jobs = settings.max_jobs
        self.jobs: tuple[JobRecords, RootedFiles] | None = None
        if settings.takes_jobs:
            self.jobs = JobRecords(self.store), RootedFiles(settings.job_input_roots, settings.job_output_roots)
        self._settings = settings
        self._credentials = Credentials(self.store)
        self._are_credentials_prepared = False
        self._preparation: asyncio.Task[None] | None = None
        self._is_reachable = asyncio.Event()
        self._workers_changed = asyncio.Event()
        self.show_model(manifest)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        manifest: Manifest,
        store: RevisionStore,
        metrics: Metrics,
        *,
        apply: ApplySettings,
        workers: Callable[[], list[WorkerState]],
        check_token: CheckToken,
    ) -> AdminOperations:
        """Returns the operations. Calls `apply` with the current settings, and again after each change.

        While the store is unreachable, the last known settings apply. manifest: of the model that the server loads
        first. store: of the settings; `close` closes it. metrics: of all processes of the server. workers: returns the
        state of each process. check_token: checks a token before the settings have it.
        Raises AdminListenerError if other machines can reach the listener and the store has no credential for them.
        Raises SingleTokenError if --default-beta is set and the model has one token.
        """
        earlier = await asyncio.to_thread(
            earlier_last_known, settings.state_dir, manifest.name, has_own_store=settings.store is None
        )
        try:
            await asyncio.to_thread(make_state_directory, settings.state_dir)
        except ControlStoreError as error:
            logger.error("%s", error)
        token_cache = TokenCache(settings.state_dir / TOKEN_DIRECTORY)
        replica = SettingsReplica(store, settings.state_dir / LAST_KNOWN_FILE, earlier, token_cache)
        operations = cls(settings, manifest, replica, metrics, workers, check_token)
        await replica.open()
        await operations._start(apply)
        return operations

    async def _start(self, apply: ApplySettings) -> None:
        if self.replica.unreachable_since is None:
            try:
                await self._prepare_credentials()
            except ControlStoreError as error:
                logger.error("%s", error)
            except AdminListenerError:
                await self.close()
                raise

        def on_revision(row: Revision) -> None:
            apply(row, self.replica.unreachable_since is None)
            self.notify_workers_changed()

        def on_reachable(is_reachable: bool) -> None:
            apply(self.replica.head, is_reachable)
            (self._is_reachable.set if is_reachable else self._is_reachable.clear)()

        self.replica.subscribe(on_revision, on_reachable)
        if not self._are_credentials_prepared:
            self._preparation = asyncio.create_task(self._prepare_when_reachable())

    async def close(self) -> None:
        """Stops following the store of the settings, and closes the store."""
        if self._preparation is not None:
            self._preparation.cancel()
            await asyncio.gather(self._preparation, return_exceptions=True)
        await self.replica.close()
        await asyncio.to_thread(self.store.close)

    def show_model(self, manifest: Manifest) -> None:
        """Sets the model whose name and version are in the responses to operators.

        Must be called after every process has begun to serve this model. manifest: of the model. Raises
        SingleTokenError if --default-beta is set and the model has one token.
        """
        self.manifest = manifest
        self._without_operator = initial_settings(manifest, self._settings.default_beta)

    async def find_credential(self, secret: str) -> Credential | None:
        """Returns the credential of a bearer token, or None if the token is unknown. secret: the token.

        Reads the store. If the store is unreachable, or its last revision is older than the revision in force, uses the
        credentials that were read last. Raises ControlStoreError if no credentials were ever read. Raises
        AdminListenerError if other machines can reach the listener and only the local credential exists.
        """
        if self.replica.unreachable_since is None:
            await self.replica.refresh()
        known = self.replica.credentials
        if known is None:
            self.replica.raise_if_unreachable()
            return None
        refuse_open_listener(known, self._settings)
        return self._credentials.find(known, secret)

    async def wait_until_applied(self, revision: int) -> None:
        """Waits until every ready worker has applied the revision, at most APPLY_TIMEOUT_S seconds.

        So the workers use the changed settings before the operator receives the response. The timeout is for a worker
        that does not respond.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                while any(worker.is_ready and worker.revision < revision for worker in self.workers()):
                    await self._workers_changed.wait()

    def notify_workers_changed(self) -> None:
        """Makes `wait_until_applied` check the workers again. Must be called after each change of a worker's state."""
        self._workers_changed.set()  # wakes every task that waits
        self._workers_changed.clear()

    def current_settings(self) -> ActiveSettings:
        """Returns the settings in force: the operator's settings and the default β of the server."""
        return replace(self._without_operator, revision=self.replica.head.revision, state=self.replica.state)

    def check_mix(self, mix: Mix) -> None:
        """Raises UnknownTokenError if a token of the mix exists neither in the settings nor in the model of a process.

        Does nothing while no process has loaded a model.
        """
        own = {name for worker in self.workers() for name in worker.own_tokens}
        if own:
            mix.check_names(own | self.replica.state.tokens.keys())

    def default_beta(self, state: SettingsState) -> float | None:
        """Returns the default β under the settings `state`; None if the model has one token."""
        return replace(self._without_operator, state=state).default.beta

    def default_beta_source(self, state: SettingsState) -> BetaSource:
        """Returns the source of the default β under the settings `state`.

        The source is "operator" if an operator or --default-beta chose the β, or if the operator's bounds changed it.
        Otherwise the source is "bundle".
        """
        return replace(self._without_operator, state=state).default.source

    def refuse_beta(self, change: SettingsChange) -> None:
        """Raises SingleTokenError, always: a model with one token has no β to change. Called only for such a model.

        The error names the field of the change: default_beta or default_strength, or else "bounds and policies".
        """
        defaults = [name for name in ("default_beta", "default_strength") if name in change.model_fields_set]
        raise SingleTokenError(defaults[0] if defaults else "bounds and policies")

    async def _prepare_credentials(self) -> None:
        await asyncio.to_thread(prepare_credentials, self._credentials, self._settings)
        self._are_credentials_prepared = True
        await self.replica.refresh()

    async def _prepare_when_reachable(self) -> None:
        """Waits until the store is reachable, then creates the local credential if the store has no credential.

        Runs as a task if the store was unreachable at start. Retries after a ControlStoreError. After an
        AdminListenerError, logs the error and ends; the listener then refuses every request.
        """
        while not self._are_credentials_prepared:
            await self._is_reachable.wait()
            try:
                await self._prepare_credentials()
            except ControlStoreError:
                await asyncio.sleep(RETRY_S)
            except AdminListenerError as error:  # a server that already serves requests must not end because of it
                logger.error("%s; until then the listener refuses every request", error)
                return
