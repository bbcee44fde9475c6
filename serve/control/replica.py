"""Keeps a copy of the operator's settings in one server: follows the store, and writes changes to it.

Writes planned changes when they are due. If several servers share a store, each tries to write a planned change, and
the store accepts the first. While the store is unreachable, the last known settings stay in force, even after a
restart. Knows nothing about HTTP, images or workers: callbacks receive each change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ValidationError

from serve.control.change import apply_next_due, next_due_time
from serve.control.credential_store import Credential, Credentials
from serve.control.notifications import store_changes
from serve.control.revision_store import REVISION_0, Revision, RevisionStore, next_revision
from serve.control.settings_state import SettingsState
from serve.control.token_cache import TokenCache
from serve.errors import ControlStoreError, StaleRevisionError
from serve.telemetry.logs import FIELDS
from tureen.atomic_file import write_atomically

logger = logging.getLogger("tureen.control")

RETRY_S = 1.0
SNAPSHOT_RETRY_S = 10.0
OnRevision = Callable[[Revision], None]


@dataclass(frozen=True)
class StoreSnapshot:
    """A copy of the current content of a store. head: the last revision. credentials: None if they were never read."""

    head: Revision
    credentials: tuple[Credential, ...] | None = None


class SnapshotFile(BaseModel):
    """The content of the file with the last known settings.

    A server uses the file if the store is unreachable at start. row: the columns of the last revision. credentials:
    those of all operators; None if they were never read.
    """

    row: dict[str, str | int]
    credentials: tuple[Credential, ...] | None = None

    @property
    def revision(self) -> Revision:
        return Revision(**self.row)  # type: ignore[arg-type] # `read_snapshot` checks it


class SettingsReplica:
    """The operator's settings in force in one server. `open` and `close` require a running event loop.

    head: the revision in force. state: the settings of that revision.
    """

    def __init__(
        self,
        store: RevisionStore,
        snapshot: Path | None = None,
        earlier_snapshot: Path | None = None,
        token_cache: TokenCache | None = None,
    ) -> None:
        """snapshot: the file with the last known settings, or None to keep no file.

        token_cache: receives the token files of a revision before the revision is in force. None: keeps no token files.

        earlier_snapshot: the file of an earlier version of Tureen for the same purpose. It is read if `snapshot` is
        missing, and removed after `snapshot` is written.
        """
        self.store = store
        self._credentials = Credentials(store)
        self.credentials: tuple[Credential, ...] | None = None
        self.head: Revision = REVISION_0
        self.state: SettingsState = REVISION_0.state
        self.unreachable_since: datetime | None = None
        self._fault: ControlStoreError | None = None
        self._plan_error: ControlStoreError | None = None  # why a due change could not be written
        self._snapshot = snapshot
        self._earlier_snapshot = earlier_snapshot
        self._token_cache = token_cache
        self._copied_tokens: frozenset[str] = frozenset()  # SHA-256 of the files that the cache is known to have
        self._token_error: str | None = None  # why a file could not be copied, as logged last
        self._is_known = False  # whether the store or a snapshot was read
        self._on_revision: list[OnRevision] = []
        self._on_reachable: list[Callable[[bool], None]] = []
        self._revision_changed = asyncio.Event()
        self._snapshot_outdated = asyncio.Event()
        self._plans_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Reads the settings from the snapshot file and the store, then follows the store.

        If the store is unreachable, or its last revision is older than the snapshot's, the snapshot is in force. If
        neither can be read, the defaults of the server are in force until the store can be read.
        """
        last_known = await asyncio.to_thread(self._read_last_known)
        if last_known is not None:
            self._is_known = True
            self.credentials = last_known.credentials
            self._apply(last_known.head)
        await self.refresh()
        work = (self._follow_store(), self._make_planned_changes(), self._write_snapshots())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def close(self) -> None:
        """Stops following the store. The caller closes the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def subscribe(self, on_revision: OnRevision, on_reachable: Callable[[bool], None] = lambda reachable: None) -> None:
        """Calls both callbacks immediately, and later in the event loop after each change.

        on_revision: receives the revision in force; no call has a lower number than the call before. A call with the
        same number says that token files have arrived. on_reachable: receives whether the store is reachable.
        """
        self._on_revision.append(on_revision)
        self._on_reachable.append(on_reachable)
        on_revision(self.head)
        on_reachable(self.unreachable_since is None)

    async def append(
        self,
        head: Revision,
        after: SettingsState,
        *,
        who: str,
        action: str,
        reason: str,
        token_files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Revision:
        """Writes the settings `after` to the store as the revision after `head`. Returns this revision.

        When the method returns, the revision is durable and in force in this server. who, action, reason: for the
        history. token_files: contents of the added token files by SHA-256, which the token cache already has. Raises
        StaleRevisionError if the store has a revision after `head`, and ControlStoreError if the store is unreachable.
        """
        row = next_revision(head, after, at=datetime.now(UTC), who=who, action=action, reason=reason)
        try:
            await asyncio.to_thread(self._append, row, token_files)
        except StaleRevisionError:
            await self.refresh()
            self.raise_if_unreachable()
            raise
        self._apply(row)
        self._plan_error = None
        self._set_reachable(None)
        return row

    async def refresh(self) -> None:
        """Reads the settings of the store and puts them in force.

        If the store is unreachable, or its last revision is older than the one in force, logs an error and keeps the
        settings in force.
        """
        known = self.head
        try:
            row, credentials, has_new_files = await asyncio.to_thread(self._read_store, known, self.state)
            if row.revision < known.revision or (row.revision == known.revision and row.hash != known.hash):
                raise ControlStoreError(
                    f"the store of the operator's settings is at revision {row.revision}, and revision "
                    f"{known.revision} is in force: the store was replaced. Restore the right one{self._accept_hint}"
                )
        except ControlStoreError as error:
            self._set_reachable(error)
        else:
            if credentials != self.credentials or not self._is_known:
                self._snapshot_outdated.set()
            self._is_known, self.credentials = True, credentials
            if has_new_files and row.revision == self.head.revision:
                for on_revision in self._on_revision:  # so that the processes try parked tokens again
                    on_revision(row)
            self._apply(row)
            self._set_reachable(self._plan_error)

    def _append(self, row: Revision, token_files: Mapping[str, bytes]) -> None:
        self.store.append(row, token_files)
        self._copy_token_files(row.state)  # a rollback may bring back a token whose file this server never had

    def _read_store(self, known: Revision, known_state: SettingsState) -> tuple[Revision, tuple[Credential, ...], bool]:
        """Returns the last revision, the credentials, and whether a missing token file was copied to the cache.

        known, known_state: the revision in force and its settings, which are not parsed again.
        """
        head = self.store.head()
        state = known_state if head == known else head.state
        return head, tuple(self._credentials.all()), self._copy_token_files(state)

    def _copy_token_files(self, state: SettingsState) -> bool:
        """Copies the token files of the settings from the store to the cache. Returns whether a file was missing.

        A file that cannot be copied is tried again at the next call. Until then the token is parked. The settings stay
        in force in any case. Raises ControlStoreError if the store fails.
        """
        cache, needed = self._token_cache, frozenset(state.tokens.values())
        if cache is None or needed <= self._copied_tokens:
            return False
        copied, is_any_new = set(self._copied_tokens & needed), False
        for sha256 in needed - self._copied_tokens:
            content = None if cache.has(sha256) else self.store.token_file(sha256)
            if content is not None:
                try:
                    cache.write(content)
                except ControlStoreError as error:
                    if str(error) != self._token_error:
                        self._token_error = str(error)
                        logger.error("a token cannot be used: %s", error)
                    continue
                is_any_new = True
            copied.add(sha256)
        self._copied_tokens = frozenset(copied)
        return is_any_new

    def _read_last_known(self) -> StoreSnapshot | None:
        return read_snapshot(self._snapshot) or read_snapshot(self._earlier_snapshot)

    def raise_if_unreachable(self) -> None:
        """Raises ControlStoreError if the store is unreachable, or has an older revision than the one in force."""
        if self._fault is not None:
            raise self._fault

    async def wait_for_revision_after(self, revision: int, timeout_s: float) -> None:
        """Waits until a revision with a number above `revision` is in force, at most timeout_s seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.head.revision <= revision:
                    await self._revision_changed.wait()
        except TimeoutError:
            return

    @property
    def _accept_hint(self) -> str:
        return "" if self._snapshot is None else f", or stop the servers, remove {self._snapshot} and start them again"

    def _apply(self, row: Revision) -> None:
        """Puts the revision in force and calls the callbacks. Ignores a revision that is not newer."""
        if row.revision <= self.head.revision:
            return
        self.head, self.state = row, row.state
        for on_revision in self._on_revision:
            on_revision(row)
        fields = {"revision": row.revision, "who": row.who, "action": row.action, "hash": row.hash}
        logger.info("settings changed", extra={FIELDS: fields})
        self._plans_changed.set()
        self._snapshot_outdated.set()
        self._revision_changed.set()  # wakes every task that waits
        self._revision_changed.clear()

    def _set_reachable(self, error: ControlStoreError | None) -> None:
        is_reachable, self._fault = error is None, error
        if is_reachable == (self.unreachable_since is None):
            return
        self.unreachable_since = None if is_reachable else datetime.now(UTC)
        if error is None:
            logger.info("the store of the operator's settings is reachable again")
        elif self._is_known:
            logger.error("%s; the last known settings stay in force", error)
        else:
            logger.error("%s; no settings are known from an earlier start: the server's defaults are in force", error)
        for on_reachable in self._on_reachable:
            on_reachable(is_reachable)

    async def _follow_store(self) -> None:
        async with contextlib.aclosing(store_changes(self.store)) as changes:
            async for _ in changes:
                await self.refresh()

    async def _write_snapshots(self) -> None:
        is_written = True
        while self._snapshot is not None:
            await self._snapshot_outdated.wait()
            self._snapshot_outdated.clear()
            try:
                await asyncio.to_thread(write_snapshot, self._snapshot, StoreSnapshot(self.head, self.credentials))
                if self._earlier_snapshot not in (None, self._snapshot):
                    await asyncio.to_thread(_remove, self._earlier_snapshot)
                is_written = True
            except OSError as error:
                if is_written:
                    logger.error(
                        "the last known settings could not be written to %s: %s", self._snapshot, error.strerror
                    )
                is_written = False
                self._snapshot_outdated.set()
                await asyncio.sleep(SNAPSHOT_RETRY_S)

    async def _make_planned_changes(self) -> None:
        while True:
            self._plans_changed.clear()
            at = next_due_time(self.state)
            wait_s = None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())
            try:
                async with asyncio.timeout(wait_s):
                    await self._plans_changed.wait()
                continue
            except TimeoutError:
                pass
            head = self.head
            due = apply_next_due(head.state, datetime.now(UTC))
            if due is None:
                continue
            after, plan = due
            try:
                await self.append(head, after, who=plan.who, action=plan.kind, reason=plan.reason)
            except StaleRevisionError:  # another server made it first
                if self.head.revision == head.revision:
                    await asyncio.sleep(RETRY_S)
            except ControlStoreError as error:
                self._plan_error = error
                self._set_reachable(error)
                await asyncio.sleep(RETRY_S)


def write_snapshot(file: Path, snapshot: StoreSnapshot) -> None:
    """Writes the snapshot to the file atomically and durably. Creates the directory if it is missing.

    Raises OSError if the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = SnapshotFile(row=vars(snapshot.head), credentials=snapshot.credentials)
    write_atomically(file, content.model_dump_json().encode(), mode=0o600, has_other_writers=True)


def read_snapshot(file: Path | None) -> StoreSnapshot | None:
    """Returns the snapshot in the file; None if `file` is None, or if it is missing or damaged.

    Logs an error for a damaged file.
    """
    if file is None:
        return None
    try:
        snapshot = SnapshotFile.model_validate_json(file.read_bytes())
        row = snapshot.revision
        if row == REVISION_0 or (row.hash == row.expected_hash() and row.state):
            return StoreSnapshot(row, snapshot.credentials)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, TypeError) as error:
        logger.error("the last known settings in %s cannot be read: %s", file, type(error).__name__)
        return None
    logger.error("the last known settings in %s are not used: the file was changed after it was written", file)
    return None


def _remove(file: Path | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.unlink()
