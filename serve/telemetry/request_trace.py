"""What becomes of the request under way, noted for its trace. Who notes something needs no OpenTelemetry for it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from serve.inference.loaded_model import Answered
from tureen.bundle.manifest import Manifest


@dataclass
class Journey:
    """One request: the model that it was admitted to, and each answered image with the β that it was asked at."""

    manifest: Manifest | None = None
    images: list[tuple[tuple[float, ...], Answered]] = field(default_factory=list)


JOURNEY: ContextVar[Journey | None] = ContextVar("journey", default=None)  # None: nobody wants to know
