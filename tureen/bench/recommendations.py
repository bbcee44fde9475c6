"""What follows from a benchmark: the settings to serve with, and what `open_engine` may know from now on."""

from __future__ import annotations

from collections.abc import Iterable

from tureen.bench.records import Benchmark, Measured, Setting
from tureen.bundle.bundle import Bundle
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import LOW_PRECISION_HANDICAP, Ranking, Timing, rank

ENOUGH = 0.95  # of the best rate: a larger batch for the rest would only make its images wait
SLOWER = 2.0  # than one image alone: where latency counts, a larger batch is not worth it


def best_for_throughput(engines: Iterable[Measured]) -> Setting:
    """The most images per second, a lower precision handicapped, at the least batch that comes near them."""
    best = max(engines, key=lambda e: max(rate.images_per_second for rate in e.rates) / _handicap(e))
    most = max(rate.images_per_second for rate in best.rates)
    return _setting(best, min(rate.batch for rate in best.rates if rate.images_per_second >= ENOUGH * most))


def best_for_latency(engines: Iterable[Measured]) -> Setting:
    """The least median time for one image, a lower precision handicapped, and the batch that takes at most twice it."""
    best = min(engines, key=lambda e: e.p50_ms * _handicap(e))
    call_s = {rate.batch: rate.batch * best.streams / rate.images_per_second for rate in best.rates}
    return _setting(best, max(batch for batch, s in call_s.items() if s <= SLOWER * call_s[1]))


def rankings(bundle: Bundle, benchmark: Benchmark) -> list[Ranking]:
    """What `open_engine` may know from now on, one ranking for each number of streams."""
    found = []
    for streams in dict.fromkeys(engine.streams for engine in benchmark.engines):
        engines = [engine for engine in benchmark.engines if engine.streams == streams]
        batch = min(engine.mixed_batch for engine in engines)
        timings = [
            Timing(engine=engine.engine, precision=engine.precision, images_per_second=rate)
            for engine in engines
            if (rate := engine.rate(batch))
        ]
        found.append(rank(bundle, EngineOptions(benchmark.threads, streams), timings, batch=batch, by="bench"))
    return found


def _setting(engine: Measured, batch: int) -> Setting:
    rate = engine.rate(batch)
    assert rate is not None
    return Setting(
        engine=engine.engine,
        precision=engine.precision,
        streams=engine.streams,
        max_batch=batch,
        images_per_second=rate,
        p50_ms=engine.p50_ms,
    )


def _handicap(engine: Measured) -> float:
    return 1.0 if engine.precision == "fp32" else LOW_PRECISION_HANDICAP
