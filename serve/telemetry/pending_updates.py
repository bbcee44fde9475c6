"""Collects the updates of metrics, and applies many of them together, because each one takes a lock of its metric.

The updates are applied before the metrics of this process are read. Other processes read them in files, so they are
also applied at most UPDATE_S seconds later.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

UPDATE_S = 0.1


class _Observations:
    """The pending observations of one histogram: their number in each bucket, and their sum."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._counts: Counts[int] = Counts()
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._histogram._upper_bounds, value)] += 1
        self._sum += value

    def apply(self) -> None:
        """Does the same as a call of `Histogram.observe` for each value. A test compares the two."""
        if self._counts:
            for bucket, count in self._counts.items():
                self._histogram._buckets[bucket].inc(count)
            self._histogram._sum.inc(self._sum)
            self._counts, self._sum = Counts(), 0.0


class PendingUpdates(Collector):
    """The updates of the metrics of a registry that are not applied yet. Any thread may call the methods."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers itself. Must be the first collector of the registry, so that it runs before the others."""
        self._counts: Counts[Counter] = Counts()
        self._observations: dict[Histogram, _Observations] = {}
        self._gauges: dict[Gauge, float | Callable[[], float]] = {}
        self._is_timer_set = False
        self._lock = threading.Lock()
        registry.register(self)

    def count(self, counter: Counter) -> None:
        """Adds 1 to a counter."""
        with self._lock:
            self._counts[counter] += 1
        self._apply_soon()

    def observe(self, histogram: Histogram, value: float) -> None:
        """Adds an observation to a histogram."""
        with self._lock:
            observations = self._observations.get(histogram)
            if observations is None:
                observations = self._observations[histogram] = _Observations(histogram)
            observations.add(value)
        self._apply_soon()

    def set(self, gauge: Gauge, value: float | Callable[[], float]) -> None:
        """Sets a gauge to a value, or to the result of a function that is called when the updates are applied."""
        with self._lock:
            self._gauges[gauge] = value
        self._apply_soon()

    def apply(self) -> None:
        """Applies all updates."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
            gauges, self._gauges = self._gauges, {}
            for observations in self._observations.values():
                observations.apply()
        for counter, count in counts.items():
            counter.inc(count)
        for gauge, value in gauges.items():
            gauge.set(value() if callable(value) else value)

    def collect(self) -> Iterable[Metric]:
        """Applies all updates. Has no metrics itself."""
        self.apply()
        return ()

    def describe(self) -> Iterable[Metric]:
        """Has no metrics itself."""
        return ()

    def _apply_soon(self) -> None:
        if not self._is_timer_set:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # no event loop: the updates are applied when the metrics are read
                return
            self._is_timer_set = True
            loop.call_later(UPDATE_S, self._apply_by_timer)

    def _apply_by_timer(self) -> None:
        self._is_timer_set = False
        self.apply()
