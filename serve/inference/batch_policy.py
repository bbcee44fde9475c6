"""Decides which queued rows form the next batch, and how a failed batch runs again.

Knows nothing about HTTP, images or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Priority(IntEnum):
    """The priority of a row. ONLINE: a client waits for the row. BACKGROUND: no client waits, as in batch jobs."""

    ONLINE = 0
    BACKGROUND = 1


class QueuedRow(Protocol):
    """The attributes of a row that the policy reads. A row is one image at one β.

    deadline_s: the row must be in a batch by then. is_abandoned: whether the client closed the connection.
    """

    @property
    def priority(self) -> Priority: ...

    @property
    def deadline_s(self) -> float: ...

    @property
    def is_abandoned(self) -> bool: ...


R = TypeVar("R", bound=QueuedRow)
T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[R]):
    """The rows of a queue, each row in exactly one of four lists. Each list keeps the order of the queue.

    batch: the rows to run now. expired: their deadlines have passed. abandoned: their clients have closed the
    connection. waiting: the rows that remain in the queue.
    """

    batch: list[R]
    expired: list[R]
    abandoned: list[R]
    waiting: list[R]


def next_batch(queue: Iterable[R], *, now_s: float, max_batch: int, max_background: int) -> Decision[R]:
    """Divides the queue into the next batch and the other rows. The batch has the oldest rows, at most max_batch.

    Does not wait for more rows. A row does not enter a batch if its client closed the connection, or if its deadline
    has passed. now_s: the time, in the clock of the deadlines. The rows of a batch may differ in β.

    Background rows never share a batch with online rows, because they would make that batch longer. They run in batches
    of at most max_background rows while no online row waits.
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


class BatchParts(Generic[T]):
    """Iterates over the parts of a batch to run: first the whole batch, then the halves of each part that failed.

    The caller runs each part, and calls `halve` with each part that fails. So if one row makes a batch fail, only that
    row fails in the end, and every other row gets its result. Parts are in the order of the batch.
    """

    def __init__(self, batch: Sequence[T]) -> None:
        self._pending = [batch]

    def __iter__(self) -> Iterator[Sequence[T]]:
        while self._pending:
            yield self._pending.pop()

    def halve(self, part: Sequence[T]) -> bool:
        """Schedules both halves of a failed part as the next parts. Returns False if the part is a single row."""
        if len(part) < 2:
            return False
        middle = len(part) // 2
        self._pending += [part[middle:], part[:middle]]
        return True
