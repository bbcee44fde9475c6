"""Decides which waiting requests form the next batch. Knows nothing about HTTP, images or models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the policy needs to know of a request in the queue."""

    @property
    def deadline_s(self) -> float: ...

    @property
    def is_abandoned(self) -> bool: ...


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True)
class Decision(Generic[W]):
    """Every request of the queue, in exactly one of four places, each in the order of the queue."""

    batch: list[W]
    expired: list[W]
    abandoned: list[W]
    waiting: list[W]


def next_batch(queue: Iterable[W], *, now_s: float, max_batch: int) -> Decision[W]:
    """Take what waits, the oldest first, up to max_batch; never wait for more.

    A request whose client has gone, or whose deadline (same clock as now_s) has passed, takes no place in a batch.
    β plays no part: neighbours may have any.
    """
    decision: Decision[W] = Decision([], [], [], [])
    for request in queue:
        if request.is_abandoned:
            decision.abandoned.append(request)
        elif request.deadline_s <= now_s:
            decision.expired.append(request)
        elif len(decision.batch) < max_batch:
            decision.batch.append(request)
        else:
            decision.waiting.append(request)
    return decision
