"""What `tureen bench` measures, as records; as JSON, its output."""

from __future__ import annotations

import datetime

from pydantic import BaseModel, ConfigDict, Field, computed_field

from tureen.bundle.manifest import Precision


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSetup(_Record):
    """An engine to open, and how it uses the machine."""

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
    """An engine that has reproduced the golden rows in a process of its own, where no other one is."""

    engine_version: str
    load_s: float = Field(description="seconds to import the runtime, compile the backbone and run the golden rows")
    memory_bytes: int | None = Field(
        description="how much the process's memory had grown at its peak, after a first batch on every stream; none: "
        "this system does not tell"
    )


class TimedTurn(_Record):
    """What is asked of an engine: on every stream at once, so many runs of one batch after the other."""

    batch: int
    calls: int
    is_mixed: bool = Field(default=False, description="every image at its own β, instead of all at one")


class TurnTimes(_Record):
    """How long a turn took, and each of its calls; tokens are mixed within them."""

    seconds: float
    call_seconds: list[float]


class BatchRate(_Record):
    batch: int
    images_per_second: float = Field(description="of all streams together; the median over the rounds")


class EngineMeasurement(_Record):
    """One engine in one precision, with so many streams."""

    engine: str
    precision: Precision
    engine_version: str
    streams: int
    load_s: float
    memory_bytes: int | None
    rates: list[BatchRate]
    skipped: list[int] = Field(description="batches that would have taken too long")
    mixed_batch: int
    mixed_ratio: float = Field(description="images/s with as many β as images, in parts of images/s with one β")
    p50_ms: float = Field(description="of a run of one image while the other streams do the same")
    p99_ms: float
    latency_calls: int = Field(description="runs that p50 and p99 are of")

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def rate(self, batch: int) -> float | None:
        """Images per second at that batch; None where it was not measured."""
        return next((rate.images_per_second for rate in self.rates if rate.batch == batch), None)


class ExcludedEngine(_Record):
    engine: str
    precision: Precision
    streams: int
    reason: str


class RecommendedSettings(_Record):
    """Settings of `tureen serve`, and what was measured with them."""

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
    """All that was measured of one bundle on one machine."""

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
    throughput: RecommendedSettings
    latency: RecommendedSettings
