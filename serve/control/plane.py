"""Holds the operator's settings for the processes of one server: applies changes, notices others', does what is due.

Of several servers on one store each does what is due; the store lets one of them win. Where the store cannot be
reached, what was last known stays in force. Knows nothing about HTTP, images or workers: these are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from serve.control.change import due, next_due
from serve.control.errors import ControlStoreError, StaleRevisionError
from serve.control.state import ControlState
from serve.control.store import BEFORE_ALL, Revision, Store, next_revision
from serve.control.watching import hints
from serve.logs import FIELDS

logger = logging.getLogger("tureen.control")

RETRY_S = 1.0
Told = Callable[[Revision], None]


class Snapshot(BaseModel):
    """The last known settings, beside the server: what it starts with where its store cannot be reached."""

    row: dict[str, str | int]

    @property
    def revision(self) -> Revision:
        return Revision(**self.row)  # type: ignore[arg-type] # read and checked as one by `read_snapshot`


class ControlPlane:
    """The settings in force, and whoever wants to know of them. Opened and closed in a running loop."""

    def __init__(self, store: Store, snapshot: Path | None = None) -> None:
        """snapshot: the file that the last known settings are kept in as well."""
        self.store = store
        self.head: Revision = BEFORE_ALL
        self.state: ControlState = BEFORE_ALL.state
        self.unreachable_since: datetime | None = None
        self._fault: ControlStoreError | None = None
        self._unwritten: ControlStoreError | None = None  # why what is due cannot be done
        self._snapshot = snapshot
        self._told: list[Told] = []
        self._on_reachable: list[Callable[[bool], None]] = []
        self._changed = asyncio.Event()  # set, and another put in its place, with every revision
        self._unkept = asyncio.Event()
        self._planned = asyncio.Event()  # set when what is due next may be another
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Get the settings in force, and follow them from then on.

        From the store, else from the snapshot, also where the store lies behind that; raises ControlStoreError where
        neither can be had: a server that began with defaults would take back what an operator had set.
        """
        last_known = await asyncio.to_thread(read_snapshot, self._snapshot)
        if last_known is not None:
            self._take(last_known)
            await self.refresh()
        else:
            self._take(await asyncio.to_thread(self.store.head))
        work = (self._follow(), self._do_what_is_due(), self._keep())
        self._tasks = [asyncio.create_task(one) for one in work]

    async def close(self) -> None:
        """Follow no more. The store is closed by whoever opened it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell(self, told: Told, on_reachable: Callable[[bool], None] = lambda reachable: None) -> None:
        """Have both called in the loop: now, and whenever something changed; revisions only ever grow."""
        self._told.append(told)
        self._on_reachable.append(on_reachable)
        told(self.head)
        on_reachable(self.unreachable_since is None)

    async def append(self, head: Revision, after: ControlState, *, who: str, action: str, reason: str) -> Revision:
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
        """Look at the store; where it cannot be reached, say so and go on with what is known."""
        known = self.head
        try:
            row = await asyncio.to_thread(self.store.head)
            if row.revision < known.revision or (row.revision == known.revision and row.hash != known.hash):
                raise ControlStoreError(
                    f"the store of the operator's settings is at revision {row.revision}, not at the {known.revision} "
                    f"in force: it was replaced by another. Put the right one back{self._or_accept}"
                )
        except ControlStoreError as error:
            self._set_reachable(error)
        else:
            self._take(row)
            self._set_reachable(self._unwritten)

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
        else:
            logger.error("%s; what was last known stays in force", error)
        for on_reachable in self._on_reachable:
            on_reachable(is_reachable)

    async def _follow(self) -> None:
        async with contextlib.aclosing(hints(self.store)) as looks:
            async for _ in looks:
                await self.refresh()

    async def _keep(self) -> None:
        while self._snapshot is not None:
            await self._unkept.wait()
            self._unkept.clear()
            try:
                await asyncio.to_thread(write_snapshot, self._snapshot, self.head)
            except OSError as error:
                logger.error("the last known settings could not be kept: %s", error.strerror)

    async def _do_what_is_due(self) -> None:
        while True:
            self._planned.clear()
            at = next_due(self.state)
            wait_s = None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())
            try:
                async with asyncio.timeout(wait_s):
                    await self._planned.wait()
                continue
            except TimeoutError:
                pass
            head = self.head
            done = due(head.state, datetime.now(UTC))
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


def write_snapshot(file: Path, row: Revision) -> None:
    """Replace the file as a whole, durably; raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(descriptor, "w") as temporary:
            temporary.write(Snapshot(row=vars(row)).model_dump_json())
            temporary.flush()
            os.fsync(temporary.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def read_snapshot(file: Path | None) -> Revision | None:
    """What was kept there, where it is sound."""
    if file is None:
        return None
    try:
        row = Snapshot.model_validate_json(file.read_bytes()).revision
        return row if row.hash == row.expected_hash() and row.state else None
    except (OSError, ValidationError, TypeError):
        return None
