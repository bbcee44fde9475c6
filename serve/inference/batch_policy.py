"""Decides which waiting rows form the next batch. Knows nothing about HTTP, images or models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Priority(IntEnum):
    """Whose rows go first: somebody waits for an online row, nobody for one of a batch job."""

    ONLINE = 0
    BATCH = 1


class Waiting(Protocol):
    """What the policy needs to know of a row in the queue."""

    @property
    def priority(self) -> Priority: ...

    @property
    def deadline_s(self) -> float: ...

    @property
    def is_abandoned(self) -> bool: ...


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True)
class Decision(Generic[W]):
    """Every row of the queue, in exactly one of four places. The last three keep the order of the queue."""

    batch: list[W]
    expired: list[W]
    abandoned: list[W]
    waiting: list[W]


def next_batch(queue: Iterable[W], *, now_s: float, max_batch: int, max_background: int) -> Decision[W]:
    """Take what waits, up to max_batch, the oldest first. Never wait for more.

    A row whose client has gone, or whose deadline (same clock as now_s) has passed, takes no place in a batch. β plays
    no part: neighbours may have any. Rows of batch jobs never share a batch with online rows, which would be longer for
    it: they get runs of their own, of at most max_background rows, when no online row waits.
    """
    abandoned, expired, living = [], [], []
    for row in queue:
        if row.is_abandoned:
            abandoned.append(row)
        elif row.deadline_s <= now_s:
            expired.append(row)
        else:
            living.append(row)
    online = [row for row in living if row.priority is Priority.ONLINE]
    batch = online[:max_batch] if online else living[: min(max_background, max_batch)]
    taken = set(map(id, batch))
    return Decision(batch, expired, abandoned, [row for row in living if id(row) not in taken])
