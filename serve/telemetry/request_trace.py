"""Holds the trace data of the current request. Code that records the data does not import OpenTelemetry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from tureen.bundle.manifest import Manifest


@dataclass(frozen=True)
class StageTimes:
    """The start (time.monotonic) and duration of each stage of an image, and the number of rows in its batch."""

    decode_began_s: float
    decode_s: float
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


@dataclass
class RequestTrace:
    """The trace data of one request: the manifest of its model, and the β and the stage times of each image."""

    manifest: Manifest | None = None  # None: the request was refused
    images: list[tuple[tuple[float, ...], StageTimes]] = field(default_factory=list)


REQUEST_TRACE: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)  # None: tracing is off
