"""Decides which requests are admitted, and which get 429: by their number, their pixels and the expected time.

Knows no model, tokens or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve.errors import OverloadedError, TooManyPixelsError
from serve.inference.queue_time import QueueTime, StartSpeed, retry_after_s
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.errors import TureenError
from tureen.image_cost import LEAST_COST, ImageCost, ImageKind

DEFAULT_QUEUE_S = 1.0


class Permits:
    """The permits of the requests in progress, and the predicted time of the next request.

    queue_time: receives the measured time of each decoding and engine run.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.taken = 0
        self.queue_time = QueueTime(
            StartSpeed(0.0, {1: 0.0}),
            decoders={
                ImageKind.SMALL: settings.decode_threads,
                ImageKind.LARGE: settings.decode_processes,
                ImageKind.DISPROPORTIONATE: 1,
            },
        )

    @property
    def queue_limit_s(self) -> float:
        """The limit on the expected time of a request, in seconds: --max-queue-ms, if it is given.

        The default is 1 s, or the time of 3 × --max-batch images at the recent speed if it is longer. Otherwise a slow
        machine would refuse clients of which each waits for its response before it sends the next request. Of the three
        batches, one runs, one waits, and one is for the time of decoding.
        """
        if self._settings.max_queue_ms is not None:
            return self._settings.max_queue_ms / 1000
        return max(DEFAULT_QUEUE_S, self.queue_time.inference_s(3 * self._settings.max_batch))

    def refusal(
        self, costs: Sequence[ImageCost] = (LEAST_COST,), rows: int = 1, timeout_ms: int | None = None
    ) -> TureenError | None:
        """Returns None if a request can be admitted now, or else the error for its client.

        costs: of each image of the request. rows: engine rows of all images. The default is one small image, because
        the images are unknown before the body arrives. timeout_ms: of the request; None: that of the settings.
        Returns TooManyPixelsError above max_request_pixels. Returns OverloadedError if another request is in progress
        and one of these is true: all permits are taken, the images to decode would exceed max_decode_pixels, or the
        expected time exceeds `queue_limit_s` or the timeout.
        """
        settings, pixels = self._settings, sum(cost.pixels for cost in costs)
        if pixels > settings.max_request_pixels:
            return TooManyPixelsError(settings.max_request_pixels)
        if not self.taken:
            return None
        limit_s = min(self.queue_limit_s, (timeout_ms or settings.timeout_ms) / 1000)
        expected_s = self.queue_time.expected_s(costs, rows)
        if (
            self.taken >= settings.max_requests
            or expected_s > limit_s
            or not self.queue_time.has_room(costs, settings.max_decode_pixels)
        ):
            return OverloadedError(retry_after_s(expected_s, limit_s))
        return None

    @contextmanager
    def hold(self, costs: Sequence[ImageCost], rows: int) -> Iterator[None]:
        """Takes a permit until the `with` block ends. costs: of each image. rows: engine rows of each image.

        The caller reports the end of each decoding with `queue_time.end_decoding`, inside the block.
        """
        self.taken += 1
        for cost in costs:
            self.queue_time.add_image(cost, rows)
        self.export()
        try:
            yield
        finally:
            self.taken -= 1
            self.queue_time.remove_rows(rows * len(costs))
            self.export()

    def record_decoding(self, cost: ImageCost, seconds: float) -> None:
        """Records the measured time of one decoding."""
        self.queue_time.record_decoding(cost, seconds, time.monotonic())

    def restart(self, start: StartSpeed) -> None:
        """Discards all measurements. start: the speed of the model that is served from now on."""
        self.queue_time.restart(start)
        self.export()

    def export(self) -> None:
        """Sets the metrics of the requests in progress, of the expected time and of its limit."""
        pending = self._metrics.pending
        pending.set(self._metrics.in_flight, self.taken)
        pending.set(self._metrics.expected_queue, self.queue_time.expected_s)
        pending.set(self._metrics.expected_queue_limit, lambda: self.queue_limit_s)
