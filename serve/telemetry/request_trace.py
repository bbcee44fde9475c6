"""Holds the data for the trace of the current request, so that only `serve.telemetry.tracing` needs OpenTelemetry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from tureen.bundle.manifest import Manifest


@dataclass(frozen=True)
class StageTimes:
    """The start and the duration of the stages of an image: decoding, queue, inference.

    decode_began_s, batch_began_s: start of decoding and of the engine run (time.monotonic). decode_s, queue_s,
    inference_s: durations in seconds; queue_s is the wait for a batch. batch_size: number of rows in the engine run.
    """

    decode_began_s: float
    decode_s: float
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


@dataclass
class RequestTrace:
    """The data for the trace of one request. images: the β values and the stage times of each classified image."""

    manifest: Manifest | None = None  # None: the request was refused
    images: list[tuple[tuple[float, ...], StageTimes]] = field(default_factory=list)


REQUEST_TRACE: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)  # None: tracing is off
