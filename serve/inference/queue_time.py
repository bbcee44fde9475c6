"""Predicts the time of a request from the work that the server must do before it, and the measured speed.

By Little's law, the time of a request is the work in the system times the seconds of one unit of work. Work is counted
in pixels to decode and in rows of the engine, because images differ in cost by a factor of 10,000. Each kind of image
has a lane: separate decoders with a queue that delays no other kind. Knows nothing about HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tureen.image_cost import LEAST_COST, ImageCost, ImageKind

HALF_LIFE_S = 2.0  # a measurement of this age has half its weight
PRIOR_S = 0.02  # weight of the start speed against later measurements, in seconds of work


class Slowdown:
    """Estimates how many times longer a stage, decoding or engine, takes now than when the model was loaded.

    factor: the estimate; 1 without measurements. A measurement loses half its weight in HALF_LIFE_S seconds.
    """

    def __init__(self) -> None:
        self._expected_s = self._measured_s = 0.0
        self._last_s = -math.inf

    @property
    def factor(self) -> float:
        return (self._measured_s + PRIOR_S) / (self._expected_s + PRIOR_S)

    def record(self, seconds: float, *, expected_s: float, now_s: float) -> None:
        """Records that some work took `seconds`. expected_s: the time of this work at the speed of the start.

        now_s: end of the work (time.monotonic).
        """
        kept = 0.5 ** (max(0.0, now_s - self._last_s) / HALF_LIFE_S)
        self._expected_s = kept * self._expected_s + expected_s
        self._measured_s = kept * self._measured_s + seconds
        self._last_s = max(self._last_s, now_s)

    def reset(self) -> None:
        self._expected_s = self._measured_s = 0.0


@dataclass(frozen=True)
class StartSpeed:
    """The speed of decoding and of the engine, measured when the model is loaded.

    decode_s: seconds of one unit of `ImageCost.work`. run_s: maps a number of rows to the seconds of one engine
    run with that many rows.
    """

    decode_s: float
    run_s: Mapping[int, float]

    def inference_s(self, rows: int) -> float:
        """Returns the seconds that the engine needs for `rows` rows, interpolated between the measured numbers of rows.

        More rows than the largest measured number count as several runs of that size.
        """
        largest = len(self._run_s_by_rows) - 1
        return self._run_s_by_rows[rows] if rows <= largest else rows / largest * self._run_s_by_rows[largest]

    def minimum(self, other: StartSpeed) -> StartSpeed:
        """Returns the shorter decoding time of both, and for each number of rows in `self.run_s` the shorter run."""
        run_s = {rows: min(seconds, other.run_s.get(rows, seconds)) for rows, seconds in self.run_s.items()}
        return StartSpeed(min(self.decode_s, other.decode_s), run_s)

    @cached_property
    def _run_s_by_rows(self) -> list[float]:
        """The seconds of a run with 0, 1, 2, … rows, interpolated. Cached, because every request reads it."""
        sizes = sorted(self.run_s)
        between = np.interp(range(1, sizes[-1] + 1), sizes, [self.run_s[size] for size in sizes])
        return [0.0, *between.tolist()]


class Lane:
    """The decoders of one kind of image, and the work of the images that wait for them or are being decoded.

    decoders: number of decoders. work, pixels: sums of `ImageCost` of these images. rows: engine rows of these images.
    """

    def __init__(self, decoders: int) -> None:
        self.decoders = decoders
        self.work = self.pixels = 0
        self.rows = 0  # rows of the engine that follow the decoding
        self.slowdown = Slowdown()

    @property
    def is_empty(self) -> bool:
        return not self.work and not self.pixels and not self.rows

    def add(self, cost: ImageCost, rows: int) -> None:
        self.work += cost.work
        self.pixels += cost.pixels
        self.rows += rows

    def remove(self, cost: ImageCost, rows: int) -> None:
        self.work -= cost.work
        self.pixels -= cost.pixels
        self.rows -= rows

    def expected_s(self, more_work: int, unit_s: float) -> float:
        """Returns the expected seconds until the work of the lane, and then more_work, is done.

        more_work: units of `ImageCost.work`. unit_s: seconds per unit when the model was loaded.
        """
        return (self.work + more_work) * unit_s * self.slowdown.factor / self.decoders


class QueueTime:
    """Predicts the time of a request that is admitted now. Learns from every finished decoding and engine run.

    A request waits for the lanes of its images, and then for the engine. The engine's queue includes decoded images,
    and small images that wait for a decoder, because they will be decoded soon. When no request is in progress,
    discards all measurements. The next estimate then uses the speed measured when the model was loaded.
    """

    def __init__(self, start: StartSpeed, *, decoders: Mapping[ImageKind, int]) -> None:
        """start: the speed measured when the model was loaded. decoders: simultaneous decodings, by kind of image."""
        self.start = start
        self._decoded_rows = 0  # rows of decoded images whose requests are in progress
        self._lanes = {kind: Lane(decoders[kind]) for kind in ImageKind}
        self._engine = Slowdown()
        self._last_run_s = -math.inf

    @property
    def pixels(self) -> int:
        """The number of pixels of all images that wait for a decoder or are being decoded."""
        return sum(lane.pixels for lane in self._lanes.values())

    @property
    def rows(self) -> int:
        """The number of rows of all requests in progress."""
        return self._decoded_rows + sum(lane.rows for lane in self._lanes.values())

    def restart(self, start: StartSpeed) -> None:
        """Discards all measurements. Must be called when another model is in use. start: the speed of that model."""
        self.start = start
        self._forget()

    def add_image(self, cost: ImageCost, rows: int) -> None:
        """Adds an admitted image to its lane. rows: the engine rows that the image needs."""
        self._lanes[cost.kind].add(cost, rows)

    def end_decoding(self, cost: ImageCost, rows: int) -> None:
        """Moves an admitted image from its lane to the engine's queue.

        Must be called when the decoding has ended, or when it is certain that it will not start.
        """
        self._lanes[cost.kind].remove(cost, rows)
        self._decoded_rows += rows

    def remove_rows(self, rows: int) -> None:
        """Removes the engine rows of a request that has ended. Requires an earlier `end_decoding` of all its images."""
        self._decoded_rows -= rows
        if self._is_idle:
            self._forget()

    def record_decoding(self, cost: ImageCost, seconds: float, now_s: float) -> None:
        """Records that the decoding of an image took `seconds`, successful or not.

        now_s: end of the decoding (time.monotonic). Does nothing if no request is in progress.
        """
        if self._is_idle:
            return
        expected_s = cost.work * self.start.decode_s
        self._lanes[cost.kind].slowdown.record(seconds, expected_s=expected_s, now_s=now_s)

    def record_run(self, rows: int, seconds: float, now_s: float) -> None:
        """Records that an engine run of `rows` rows took `seconds`. now_s: end of the run (time.monotonic).

        If runs overlap, counts only the seconds since the end of the previous run. Records nothing if no request is in
        progress.
        """
        seconds = max(0.0, min(seconds, now_s - self._last_run_s))
        self._last_run_s = max(self._last_run_s, now_s)
        if not self._is_idle:
            self._engine.record(seconds, expected_s=self.start.inference_s(rows), now_s=now_s)

    def expected_s(self, costs: Iterable[ImageCost] = (LEAST_COST,), rows: int = 1) -> float:
        """Returns the expected seconds of a request. costs: of its images. rows: engine rows of all images.

        Each kind of image has separate decoders, its lane. Lanes decode concurrently, so only the slowest one counts.
        An idle lane for large or disproportionate images counts as 0 s. So the first such image is admitted even if its
        decoding takes longer than the limit.
        """
        work: dict[ImageKind, int] = {}
        for cost in costs:
            work[cost.kind] = work.get(cost.kind, 0) + cost.work
        decode_s = 0.0
        rows += self._decoded_rows + self._lanes[ImageKind.SMALL].rows
        for kind, more_work in work.items():
            lane = self._lanes[kind]
            if kind is ImageKind.SMALL or lane.work:
                decode_s = max(decode_s, lane.expected_s(more_work, self.start.decode_s))
            if kind is not ImageKind.SMALL:
                rows += lane.rows
        return decode_s + self.inference_s(rows)

    def inference_s(self, rows: int) -> float:
        """Returns the expected seconds that the engine needs for `rows` rows, at the recent speed."""
        return self._engine.factor * self.start.inference_s(rows)

    def has_room(self, costs: Sequence[ImageCost], max_pixels: int) -> bool:
        """Returns whether the pixels of all images to decode stay within max_pixels if these images are added.

        There are two groups of images. Disproportionate images may have half of max_pixels. Small and large images may
        have the pixels that the disproportionate ones leave. If no image of a group waits for a decoder or is being
        decoded, the next images of that group are allowed, whatever their size.
        """
        disproportionate = self._lanes[ImageKind.DISPROPORTIONATE].pixels
        others = self.pixels - disproportionate
        more_disproportionate = sum(cost.pixels for cost in costs if cost.kind is ImageKind.DISPROPORTIONATE)
        more_others = sum(cost.pixels for cost in costs) - more_disproportionate
        half = max_pixels // 2
        return (
            not disproportionate or not more_disproportionate or disproportionate + more_disproportionate <= half
        ) and (not others or not more_others or others + more_others + min(disproportionate, half) <= max_pixels)

    @property
    def _is_idle(self) -> bool:
        return not self._decoded_rows and all(lane.is_empty for lane in self._lanes.values())

    def _forget(self) -> None:
        for slowdown in (self._engine, *(lane.slowdown for lane in self._lanes.values())):
            slowdown.reset()


def retry_after_s(expected_s: float, limit_s: float) -> int:
    """Returns the value of Retry-After: the seconds by which the expected time exceeds the limit, rounded up, ≥ 1."""
    return max(1, math.ceil(expected_s - limit_s))
