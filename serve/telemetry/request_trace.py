"""What the trace of the request under way needs. Code that records something here needs no OpenTelemetry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from tureen.bundle.manifest import Manifest


@dataclass(frozen=True)
class StageTimes:
    """When and how long an image was in each stage: time.monotonic, and seconds; batch_size: rows of its batch."""

    decode_began_s: float
    decode_s: float
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


@dataclass
class RequestTrace:
    """One request: the model that admitted it, and for each image its β and its times."""

    manifest: Manifest | None = None
    images: list[tuple[tuple[float, ...], StageTimes]] = field(default_factory=list)


REQUEST_TRACE: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)  # None: no tracing
