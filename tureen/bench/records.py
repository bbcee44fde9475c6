"""Defines the records of `tureen bench`. The output of `tureen bench --json` is one `Benchmark`."""

from __future__ import annotations

import datetime

from pydantic import BaseModel, ConfigDict, Field, computed_field

from tureen.bundle.manifest import Precision


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSetup(_Record):
    """An engine to measure, and the options with which a worker process opens it."""

    bundle: str = Field(description="its directory")
    engine: str
    precision: Precision
    threads: int
    streams: int
    max_batch: int

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"


class OpenedEngine(_Record):
    """The cost of opening one engine in a worker process: time and memory.

    The time includes the check that the engine reproduces the golden rows of the bundle.
    """

    engine_version: str
    load_s: float = Field(description="seconds to import the runtime, compile the backbone and run the golden rows")
    memory_bytes: int | None = Field(
        description="peak growth of the process's memory, after a first batch on every stream; none: unknown on this "
        "system"
    )


class TimedTurn(_Record):
    """A turn: one timing of an engine. All streams run at the same time. Each runs a batch `calls` times.

    batch: number of images in the batch.
    """

    batch: int
    calls: int
    is_mixed: bool = Field(default=False, description="each image at its own β, instead of all at one")


class TurnTimes(_Record):
    """The durations of a `TimedTurn` in seconds. They include the time to mix the tokens.

    seconds: from the start of all streams to the end of the last one. call_seconds: one for each call of each stream.
    """

    seconds: float
    call_seconds: list[float]


class BatchRate(_Record):
    batch: int
    images_per_second: float = Field(description="of all streams together; median of the rounds")


class EngineMeasurement(_Record):
    """The measurements of one engine in one precision with one number of streams."""

    engine: str
    precision: Precision
    engine_version: str
    streams: int
    load_s: float
    memory_bytes: int | None
    rates: list[BatchRate]
    skipped: list[int] = Field(description="batches that would take too long")
    mixed_batch: int = Field(description="batch size at which `mixed_ratio` was measured")
    mixed_ratio: float = Field(description="images/s with one β per image, divided by images/s with one β for all")
    p50_ms: float = Field(description="of one image, while the other streams run one image too")
    p99_ms: float
    latency_calls: int = Field(description="number of runs for p50 and p99")

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def rate(self, batch: int) -> float | None:
        """Returns the images per second at a batch size; None if it was not measured at that size."""
        return next((rate.images_per_second for rate in self.rates if rate.batch == batch), None)


class ExcludedEngine(_Record):
    engine: str
    precision: Precision
    streams: int
    reason: str


class RecommendedSettings(_Record):
    """Recommended settings of `tureen serve`, and the rate and latency that were measured with these settings."""

    engine: str
    precision: Precision
    streams: int
    max_batch: int
    images_per_second: float = Field(description="at that batch")
    p50_ms: float = Field(description="of one image")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def flags(self) -> str:
        return (
            f"--engine {self.engine} --precision {self.precision} --streams {self.streams} --max-batch {self.max_batch}"
        )


class Benchmark(_Record):
    """All measurements of one bundle on one machine."""

    model: str
    version: str
    measured_on: datetime.date
    processor: str
    gpus: list[str]
    threads: int
    runtimes: dict[str, str]
    tureen: str
    rounds: int
    max_turn_s: float = Field(description="batches that take longer are skipped")
    engines: list[EngineMeasurement]
    left_out: list[ExcludedEngine]
    throughput: RecommendedSettings = Field(description="for the most images per second")
    latency: RecommendedSettings = Field(description="for the lowest latency of one image")
