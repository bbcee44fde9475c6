"""Decides whether one more request is taken, by how long those before it will take. Knows nothing about HTTP.

By Little's law a request waits for the images in the system times the seconds that each takes of a busy machine; both
are measured. So the limit is a time, right on a laptop and on a GPU, and no guessed number of requests.
"""

from __future__ import annotations

import math

HALF_LIFE_IMAGES = 64  # after as many images an older measurement counts half
BUSY_IMAGES = 8  # with fewer in the system the time between two answers tells latency and not capacity


class QueueTime:
    """How long an image admitted now would take to be answered."""

    def __init__(self, image_s: float) -> None:
        """image_s: seconds of the busy machine that an image takes, until that is measured on real ones."""
        self.image_s = image_s
        self.images = 0  # in the system: admitted and not yet answered
        self._measured_from_s: float | None = None
        self._answered = 0

    def enter(self, images: int, now_s: float) -> None:
        """So many images are admitted; now_s: time.monotonic."""
        self.images += images
        if self._measured_from_s is None and self.images >= BUSY_IMAGES:
            self._measured_from_s, self._answered = now_s, 0

    def leave(self, images: int, now_s: float, *, was_run: bool) -> None:
        """So many are answered; was_run: by the engine, not refused on the way, so that they tell its speed."""
        self.images -= images
        if self._measured_from_s is None:
            return
        self._answered += images * was_run
        elapsed_s = now_s - self._measured_from_s
        if self._answered and elapsed_s > 0:
            weight = 1 - 0.5 ** (self._answered / HALF_LIFE_IMAGES)
            self.image_s += weight * (elapsed_s / self._answered - self.image_s)
            self._measured_from_s, self._answered = now_s, 0
        if self.images < BUSY_IMAGES:
            self._measured_from_s = None

    def expected_s(self, images: int = 1) -> float:
        """Seconds until so many more images would be answered."""
        return (self.images + images) * self.image_s


def retry_after_s(expected_s: float, limit_s: float) -> int:
    """Whole seconds, at least one, after which the queue will be shorter than the limit."""
    return max(1, math.ceil(expected_s - limit_s))
