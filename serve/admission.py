"""Decides how long one more request would take, by the work ahead of it and the measured speed of each stage.

By Little's law a request waits for the work in the system times the seconds that a unit of it takes. Work is counted in
decoded pixels and in rows of the engine, because images differ in cost by a factor of 10,000. Knows nothing about HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tureen.image_cost import LEAST, ImageCost

HALF_LIFE_S = 2.0  # after which a measurement counts half
PRIOR_S = 0.02  # seconds of work that the speed measured at the start stands for, beside later measurements


class Slowdown:
    """How many times as long as at the start a stage takes now, from measurements of the last seconds."""

    def __init__(self) -> None:
        self._expected_s = self._measured_s = 0.0
        self._last_s = -math.inf

    @property
    def factor(self) -> float:
        return (self._measured_s + PRIOR_S) / (self._expected_s + PRIOR_S)

    def measured(self, seconds: float, *, expected_s: float, now_s: float) -> None:
        """Work that took so long, and would have taken expected_s at the start; now_s: time.monotonic."""
        kept = 0.5 ** (max(0.0, now_s - self._last_s) / HALF_LIFE_S)
        self._expected_s = kept * self._expected_s + expected_s
        self._measured_s = kept * self._measured_s + seconds
        self._last_s = max(self._last_s, now_s)

    def reset(self) -> None:
        self._expected_s = self._measured_s = 0.0


@dataclass(frozen=True)
class StartSpeed:
    """What was measured at the start: seconds for a unit of decoding work, and for a run of each number of rows."""

    decode_s: float
    run_s: Mapping[int, float]

    def rows_s(self, rows: int) -> float:
        """Seconds of the engine for as many rows, in runs as large as it takes."""
        largest = len(self._of_rows) - 1
        return self._of_rows[rows] if rows <= largest else rows / largest * self._of_rows[largest]

    @cached_property
    def _of_rows(self) -> list[float]:
        """Seconds of one run by its rows, computed once: every request needs several of them."""
        sizes = sorted(self.run_s)
        between = np.interp(range(1, sizes[-1] + 1), sizes, [self.run_s[size] for size in sizes])
        return [0.0, *between.tolist()]


class Lane:
    """Decoders of one kind: the work that they have, how many there are, and how fast they are."""

    def __init__(self, decoders: int) -> None:
        self.decoders = decoders
        self.work = 0
        self.slowdown = Slowdown()

    def expected_s(self, work: int, unit_s: float) -> float:
        """Seconds until so much more work is done, of which a unit took unit_s at the start."""
        return (self.work + work) * unit_s * self.slowdown.factor / self.decoders


class QueueTime:
    """How long a request that is admitted now would take. Every finished decoding and every finished run is measured.

    Where no request is here, the speed is again the one measured at the start, and what ends late says nothing.
    Expensive images have decoders for themselves, which give way to all others, so the others do not wait for them.
    """

    def __init__(self, start: StartSpeed, *, decoders: int, expensive_decoders: int) -> None:
        """How many images of each kind are decoded at a time."""
        self.start = start
        self.pixels = 0  # of images to be decoded
        self.rows = 0  # of requests not yet answered, but for images that are still among the expensive ones
        self._cheap, self._expensive = Lane(decoders), Lane(expensive_decoders)
        self._engine = Slowdown()
        self._last_run_s = -math.inf

    def restart(self, start: StartSpeed) -> None:
        """Another engine, measured anew: nothing measured before counts."""
        self.start = start
        self._forget()

    def enter(self, cost: ImageCost, rows: int) -> None:
        """An image is admitted, to be run in so many rows."""
        self.pixels += cost.pixels
        self._lane(cost).work += cost.work
        if not cost.is_expensive:
            self.rows += rows

    def left_decoder(self, cost: ImageCost, rows: int) -> None:
        """An admitted image is decoded, or will not be."""
        self.pixels -= cost.pixels
        self._lane(cost).work -= cost.work
        if cost.is_expensive:
            self.rows += rows

    def leave(self, rows: int) -> None:
        """An image whose decoding has ended is answered."""
        self.rows -= rows
        if self._is_idle:
            self._forget()

    def decoded(self, cost: ImageCost, seconds: float, now_s: float) -> None:
        """An image was decoded, well or not, in so many seconds."""
        if self._is_idle:
            return
        expected_s = cost.work * self.start.decode_s
        self._lane(cost).slowdown.measured(seconds, expected_s=expected_s, now_s=now_s)

    def run(self, rows: int, seconds: float, now_s: float) -> None:
        """A run of the engine ended. Of runs side by side, each counts for the time since the one before ended."""
        seconds = max(0.0, min(seconds, now_s - self._last_run_s))
        self._last_run_s = max(self._last_run_s, now_s)
        if not self._is_idle:
            self._engine.measured(seconds, expected_s=self.start.rows_s(rows), now_s=now_s)

    def expected_s(self, costs: Iterable[ImageCost] = (LEAST,), rows: int = 1) -> float:
        """Seconds until a request of these images would be answered.

        Its own expensive images count where others are ahead of them: one request at a time is taken, however long.
        """
        cheap = expensive = 0
        for cost in costs:
            if cost.is_expensive:
                expensive += cost.work
            else:
                cheap += cost.work
        decode_s = self._cheap.expected_s(cheap, self.start.decode_s)
        if expensive and self._expensive.work:
            decode_s += self._expensive.expected_s(expensive, self.start.decode_s)
        return decode_s + self._engine.factor * self.start.rows_s(self.rows + rows)

    def _lane(self, cost: ImageCost) -> Lane:
        return self._expensive if cost.is_expensive else self._cheap

    @property
    def _is_idle(self) -> bool:
        return not self.rows and not self.pixels and not self._cheap.work and not self._expensive.work

    def _forget(self) -> None:
        for slowdown in (self._engine, self._cheap.slowdown, self._expensive.slowdown):
            slowdown.reset()


def retry_after_s(expected_s: float, limit_s: float) -> int:
    """Whole seconds, at least one, after which the queue will be shorter than the limit."""
    return max(1, math.ceil(expected_s - limit_s))
