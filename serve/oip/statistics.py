"""Counts the requests of the Open Inference Protocol since the server started, for its statistics extension."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Duration:
    """The number of events of one kind, and their total duration in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(1e9 * seconds)

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """The counters of inference requests in one server process, for HTTP and gRPC together.

    Each stage counts a request once, with the longest time of any of its images. The sum of the times would exceed the
    duration of the request, because the times of several images overlap.
    """

    last_inference_ms: int = 0  # end of the last successful request, ms since 1970; 0: none yet
    images: int = 0  # images of the successful requests
    success: Duration = field(default_factory=Duration)  # whole requests that succeeded
    fail: Duration = field(default_factory=Duration)  # whole requests that failed
    queue: Duration = field(default_factory=Duration)  # the wait for a batch
    compute_input: Duration = field(default_factory=Duration)  # decoding
    compute_infer: Duration = field(default_factory=Duration)  # the run of the engine
    compute_output: Duration = field(default_factory=Duration)  # making the output tensors

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts and times the `with` block as one request. The request counts as failed if the block raises."""
        started = time.perf_counter()
        outcome = self.fail
        try:
            yield
            outcome = self.success
        finally:
            outcome.add(time.perf_counter() - started)

    def add(self, *, images: int, decode_s: float, queue_s: float, inference_s: float, output_s: float) -> None:
        """Adds one successful request: its number of images, and the time of each stage in seconds."""
        self.last_inference_ms = round(1000 * time.time())
        self.images += images
        self.compute_input.add(decode_s)
        self.queue.add(queue_s)
        self.compute_infer.add(inference_s)
        self.compute_output.add(output_s)

    def as_dict(self, batches: int) -> dict[str, Any]:
        """Returns the counters by the names of the protocol's statistics extension, with durations in ns.

        batches: number of engine runs, including those for other protocols.
        """
        stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.images,
            "execution_count": batches,
            "inference_stats": {stage: getattr(self, stage).as_dict() for stage in stages},
        }
