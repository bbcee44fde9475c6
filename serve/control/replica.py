"""Holds the operator's settings for the processes of one server: applies changes, notices others', does what is due.

Of several servers on one store each does what is due; the store lets one of them win. Where the store cannot be
reached, what was last known stays in force, over a restart too. Knows nothing about HTTP, images or workers: these are
told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from serve.control.change import apply_next_due, next_due_time
from serve.control.credential_store import Credential, Credentials
from serve.control.notifications import store_changes
from serve.control.revision_store import REVISION_0, Revision, RevisionStore, next_revision
from serve.control.settings_state import SettingsState
from serve.errors import ControlStoreError, StaleRevisionError
from serve.telemetry.logs import FIELDS
from tureen.atomic_file import write_atomically

logger = logging.getLogger("tureen.control")

RETRY_S = 1.0
KEEP_AGAIN_S = 10.0  # before the file of the last known settings is tried again
OnRevision = Callable[[Revision], None]


@dataclass(frozen=True)
class StoreSnapshot:
    """What was last known of a store. credentials: None if they were never read."""

    head: Revision
    credentials: tuple[Credential, ...] | None = None


class SnapshotFile(BaseModel):
    """The file that a server starts with if its store cannot be reached."""

    row: dict[str, str | int]
    credentials: tuple[Credential, ...] | None = None

    @property
    def revision(self) -> Revision:
        return Revision(**self.row)  # type: ignore[arg-type] # read and checked as one by `read_snapshot`


class SettingsReplica:
    """The settings in force, and whoever wants to know of them. Opened and closed in a running loop."""

    def __init__(
        self, store: RevisionStore, snapshot: Path | None = None, earlier_snapshot: Path | None = None
    ) -> None:
        """snapshot: the file that keeps the last known settings. earlier_snapshot: read without one, then removed."""
        self.store = store
        self._credentials = Credentials(store)
        self.credentials: tuple[Credential, ...] | None = None
        self.head: Revision = REVISION_0
        self.state: SettingsState = REVISION_0.state
        self.unreachable_since: datetime | None = None
        self._fault: ControlStoreError | None = None
        self._unwritten: ControlStoreError | None = None  # why what is due cannot be done
        self._snapshot = snapshot
        self._earlier_snapshot = earlier_snapshot
        self._is_known = False  # by the store or by the snapshot
        self._told: list[OnRevision] = []
        self._on_reachable: list[Callable[[bool], None]] = []
        self._changed = asyncio.Event()  # set, and another put in its place, with every revision
        self._unkept = asyncio.Event()
        self._planned = asyncio.Event()  # set when what is due next may be another
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Get the settings in force, and follow them from then on.

        From the store, else from the snapshot, also where the store lies behind that. If neither can be read, the
        server's own defaults are in force until the store can.
        """
        last_known = await asyncio.to_thread(self._read_last_known)
        if last_known is not None:
            self._is_known = True
            self.credentials = last_known.credentials
            self._take(last_known.head)
        await self.refresh()
        work = (self._follow(), self._do_what_is_due(), self._keep())
        self._tasks = [asyncio.create_task(one) for one in work]

    async def close(self) -> None:
        """Follow no more. The store is closed by whoever opened it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell(self, told: OnRevision, on_reachable: Callable[[bool], None] = lambda reachable: None) -> None:
        """Have both called in the loop: now, and whenever something changed; revisions only ever grow."""
        self._told.append(told)
        self._on_reachable.append(on_reachable)
        told(self.head)
        on_reachable(self.unreachable_since is None)

    async def append(self, head: Revision, after: SettingsState, *, who: str, action: str, reason: str) -> Revision:
        """Make a change that was decided on by looking at `head`; returns once it is durable and everybody told.

        Raises StaleRevisionError or ControlStoreError.
        """
        row = next_revision(head, after, at=datetime.now(UTC), who=who, action=action, reason=reason)
        try:
            await asyncio.to_thread(self.store.append, row)
        except StaleRevisionError:
            await self.refresh()
            self.check()
            raise
        self._take(row)
        self._unwritten = None
        self._set_reachable(None)
        return row

    async def refresh(self) -> None:
        """Read the store; where it cannot be reached, say so and go on with what is known."""
        known = self.head
        try:
            row, credentials = await asyncio.to_thread(self._read_store)
            if row.revision < known.revision or (row.revision == known.revision and row.hash != known.hash):
                raise ControlStoreError(
                    f"the store of the operator's settings is at revision {row.revision}, not at the {known.revision} "
                    f"in force: it was replaced by another. Put the right one back{self._or_accept}"
                )
        except ControlStoreError as error:
            self._set_reachable(error)
        else:
            if credentials != self.credentials or not self._is_known:
                self._unkept.set()
            self._is_known, self.credentials = True, credentials
            self._take(row)
            self._set_reachable(self._unwritten)

    def _read_store(self) -> tuple[Revision, tuple[Credential, ...]]:
        return self.store.head(), tuple(self._credentials.all())

    def _read_last_known(self) -> StoreSnapshot | None:
        return read_snapshot(self._snapshot) or read_snapshot(self._earlier_snapshot)

    def check(self) -> None:
        """Raises ControlStoreError where the store cannot be reached, or lies behind what is in force."""
        if self._fault is not None:
            raise self._fault

    async def wait_beyond(self, revision: int, timeout_s: float) -> None:
        """Return once a later revision is in force, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.head.revision <= revision:
                    await self._changed.wait()
        except TimeoutError:
            return

    @property
    def _or_accept(self) -> str:
        return "" if self._snapshot is None else f", or stop the servers, remove {self._snapshot} and start again"

    def _take(self, row: Revision) -> None:
        """Have the row in force, where it is later than what is."""
        if row.revision <= self.head.revision:
            return
        self.head, self.state = row, row.state
        for told in self._told:
            told(row)
        fields = {"revision": row.revision, "who": row.who, "action": row.action, "hash": row.hash}
        logger.info("settings changed", extra={FIELDS: fields})
        self._planned.set()
        self._unkept.set()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _set_reachable(self, error: ControlStoreError | None) -> None:
        is_reachable, self._fault = error is None, error
        if is_reachable == (self.unreachable_since is None):
            return
        self.unreachable_since = None if is_reachable else datetime.now(UTC)
        if error is None:
            logger.info("the store of the operator's settings is back")
        elif self._is_known:
            logger.error("%s; what was last known stays in force", error)
        else:
            logger.error(
                "%s; no settings are known from an earlier start: the server's own defaults are in force", error
            )
        for on_reachable in self._on_reachable:
            on_reachable(is_reachable)

    async def _follow(self) -> None:
        async with contextlib.aclosing(store_changes(self.store)) as looks:
            async for _ in looks:
                await self.refresh()

    async def _keep(self) -> None:
        is_kept = True
        while self._snapshot is not None:
            await self._unkept.wait()
            self._unkept.clear()
            try:
                await asyncio.to_thread(write_snapshot, self._snapshot, StoreSnapshot(self.head, self.credentials))
                if self._earlier_snapshot not in (None, self._snapshot):
                    await asyncio.to_thread(_remove, self._earlier_snapshot)
                is_kept = True
            except OSError as error:
                if is_kept:
                    logger.error("the last known settings could not be kept: %s", error.strerror)
                is_kept = False
                self._unkept.set()
                await asyncio.sleep(KEEP_AGAIN_S)

    async def _do_what_is_due(self) -> None:
        while True:
            self._planned.clear()
            at = next_due_time(self.state)
            wait_s = None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())
            try:
                async with asyncio.timeout(wait_s):
                    await self._planned.wait()
                continue
            except TimeoutError:
                pass
            head = self.head
            done = apply_next_due(head.state, datetime.now(UTC))
            if done is None:
                continue
            after, plan = done
            try:
                await self.append(head, after, who=plan.who, action=plan.kind, reason=plan.reason)
            except StaleRevisionError:  # another server was first
                if self.head.revision == head.revision:
                    await asyncio.sleep(RETRY_S)
            except ControlStoreError as error:
                self._unwritten = error
                self._set_reachable(error)
                await asyncio.sleep(RETRY_S)


def write_snapshot(file: Path, known: StoreSnapshot) -> None:
    """Replace the file as a whole, durably, and make its directory if it is missing; raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    snapshot = SnapshotFile(row=vars(known.head), credentials=known.credentials)
    write_atomically(file, snapshot.model_dump_json().encode(), mode=0o600, has_other_writers=True)


def read_snapshot(file: Path | None) -> StoreSnapshot | None:
    """What is kept in the file; None if there is no file, or if it is damaged, which is logged."""
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
    logger.error("the last known settings in %s are not used: they were changed after they were written", file)
    return None


def _remove(file: Path | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.unlink()
