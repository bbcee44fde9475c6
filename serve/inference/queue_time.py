"""Decides how long one more request would take, by the work ahead of it and the measured speed of each stage.

By Little's law a request waits for the work in the system times the seconds that a unit of it takes. Work is counted in
decoded pixels and in rows of the engine, because images differ in cost by a factor of 10,000. Each kind of image has a
lane: decoders for itself, whose queue delays no other kind. Knows nothing about HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tureen.image_cost import LEAST, ImageCost, ImageKind

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

    def least(self, other: StartSpeed) -> StartSpeed:
        """The shorter of both times, for each number of rows that was measured here."""
        run_s = {rows: min(seconds, other.run_s.get(rows, seconds)) for rows, seconds in self.run_s.items()}
        return StartSpeed(min(self.decode_s, other.decode_s), run_s)

    @cached_property
    def _of_rows(self) -> list[float]:
        """Seconds of one run by its rows, computed once: every request needs several of them."""
        sizes = sorted(self.run_s)
        between = np.interp(range(1, sizes[-1] + 1), sizes, [self.run_s[size] for size in sizes])
        return [0.0, *between.tolist()]


class Lane:
    """Decoders of one kind of image: what waits for them or is decoded, how many there are, and how fast they are."""

    def __init__(self, decoders: int) -> None:
        self.decoders = decoders
        self.work = self.pixels = 0
        self.rows = 0  # of the engine, once the images are decoded
        self.slowdown = Slowdown()

    @property
    def is_empty(self) -> bool:
        return not self.work and not self.pixels and not self.rows

    def add(self, cost: ImageCost, rows: int, sign: int = 1) -> None:
        """An image enters; with sign -1 it leaves."""
        self.work += sign * cost.work
        self.pixels += sign * cost.pixels
        self.rows += sign * rows

    def expected_s(self, work: int, unit_s: float) -> float:
        """Seconds until so much more work is done, of which a unit took unit_s at the start."""
        return (self.work + work) * unit_s * self.slowdown.factor / self.decoders


class QueueTime:
    """How long a request that is admitted now would take. Every finished decoding and every finished run is measured.

    Where no request is here, the speed is again the one measured at the start, and what ends late says nothing. A
    request waits for the lanes of its own images and for the engine. The engine's queue has the images that are decoded
    and the small ones, which soon will be.
    """

    def __init__(self, start: StartSpeed, *, decoders: Mapping[ImageKind, int]) -> None:
        """decoders: how many images of each kind are decoded at a time."""
        self.start = start
        self._decoded_rows = 0  # of requests not yet answered
        self._lanes = {kind: Lane(decoders[kind]) for kind in ImageKind}
        self._engine = Slowdown()
        self._last_run_s = -math.inf

    @property
    def pixels(self) -> int:
        """Of images to be decoded."""
        return sum(lane.pixels for lane in self._lanes.values())

    @property
    def rows(self) -> int:
        """Of requests not yet answered."""
        return self._decoded_rows + sum(lane.rows for lane in self._lanes.values())

    def restart(self, start: StartSpeed) -> None:
        """Another engine, measured anew: nothing measured before counts."""
        self.start = start
        self._forget()

    def enter(self, cost: ImageCost, rows: int) -> None:
        """An image is admitted, to be run in so many rows."""
        self._lanes[cost.kind].add(cost, rows)

    def left_decoder(self, cost: ImageCost, rows: int) -> None:
        """An admitted image is decoded, or will not be."""
        self._lanes[cost.kind].add(cost, rows, -1)
        self._decoded_rows += rows

    def leave(self, rows: int) -> None:
        """An image whose decoding has ended is answered."""
        self._decoded_rows -= rows
        if self._is_idle:
            self._forget()

    def decoded(self, cost: ImageCost, seconds: float, now_s: float) -> None:
        """An image was decoded, well or not, in so many seconds."""
        if self._is_idle:
            return
        expected_s = cost.work * self.start.decode_s
        self._lanes[cost.kind].slowdown.measured(seconds, expected_s=expected_s, now_s=now_s)

    def run(self, rows: int, seconds: float, now_s: float) -> None:
        """A run of the engine ended. Of runs side by side, each counts for the time since the one before ended."""
        seconds = max(0.0, min(seconds, now_s - self._last_run_s))
        self._last_run_s = max(self._last_run_s, now_s)
        if not self._is_idle:
            self._engine.measured(seconds, expected_s=self.start.rows_s(rows), now_s=now_s)

    def expected_s(self, costs: Iterable[ImageCost] = (LEAST,), rows: int = 1) -> float:
        """Seconds until a request of these images would be answered, in so many rows.

        Lanes decode side by side, so the slowest counts. Images that are not small count where others of their kind are
        ahead of them: one request of each kind at a time is taken, however long.
        """
        work: dict[ImageKind, int] = {}
        for cost in costs:
            work[cost.kind] = work.get(cost.kind, 0) + cost.work
        decode_s = 0.0
        rows += self._decoded_rows + self._lanes[ImageKind.SMALL].rows
        for kind, more in work.items():
            lane = self._lanes[kind]
            if kind is ImageKind.SMALL or lane.work:
                decode_s = max(decode_s, lane.expected_s(more, self.start.decode_s))
            if kind is not ImageKind.SMALL:
                rows += lane.rows
        return decode_s + self._engine.factor * self.start.rows_s(rows)

    def has_room(self, costs: Sequence[ImageCost], max_pixels: int) -> bool:
        """Whether the images to be decoded would have so many pixels at most, these included.

        Disproportionate images have half of the pixels at most, and the others have all that these leave. Each side is
        taken whatever its pixels where none of that side are ahead.
        """
        bombs = self._lanes[ImageKind.DISPROPORTIONATE].pixels
        others = self.pixels - bombs
        more_bombs = sum(cost.pixels for cost in costs if cost.kind is ImageKind.DISPROPORTIONATE)
        more_others = sum(cost.pixels for cost in costs) - more_bombs
        half = max_pixels // 2
        return (not bombs or not more_bombs or bombs + more_bombs <= half) and (
            not others or not more_others or others + more_others + min(bombs, half) <= max_pixels
        )

    @property
    def _is_idle(self) -> bool:
        return not self._decoded_rows and all(lane.is_empty for lane in self._lanes.values())

    def _forget(self) -> None:
        for slowdown in (self._engine, *(lane.slowdown for lane in self._lanes.values())):
            slowdown.reset()


def retry_after_s(expected_s: float, limit_s: float) -> int:
    """Whole seconds, at least one, after which the queue will be shorter than the limit."""
    return max(1, math.ceil(expected_s - limit_s))
