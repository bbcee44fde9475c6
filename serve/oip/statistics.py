"""What the statistics extension counts: requests of this protocol, over HTTP and gRPC, since the server started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Duration:
    """How many, and how long all of them together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(1e9 * seconds)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """One server's counters, one entry a request; of its images' stages the longest counts, since they overlap."""

    last_inference_ms: int = 0
    images: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)  # decoding
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts what happens within as one request, failed where an exception leaves it."""
        started = time.perf_counter()
        outcome = self.fail
        try:
            yield
            outcome = self.success
        finally:
            outcome.add(time.perf_counter() - started)

    def inferred(self, *, images: int, decode_s: float, queue_s: float, inference_s: float, output_s: float) -> None:
        """Adds the stages of one answered request."""
        self.last_inference_ms = round(1000 * time.time())
        self.images += images
        self.compute_input.add(decode_s)
        self.queue.add(queue_s)
        self.compute_infer.add(inference_s)
        self.compute_output.add(output_s)

    def told(self, batches: int) -> dict[str, Any]:
        """The extension's counters; batches: how often the engine ran, for requests of every protocol."""
        stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.images,
            "execution_count": batches,
            "inference_stats": {stage: getattr(self, stage).told() for stage in stages},
        }
