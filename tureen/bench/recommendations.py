"""Derives two results from a benchmark: the best settings of the server, and the rankings for `open_engine`."""

from __future__ import annotations

from collections.abc import Iterable

from tureen.bench.records import Benchmark, EngineMeasurement, RecommendedSettings
from tureen.bundle.bundle import Bundle
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import LOW_PRECISION_HANDICAP, Ranking, Timing, make_ranking

NEAR_BEST = 0.95  # of the best rate is enough: a larger batch would mainly make images wait
MAX_SLOWDOWN = 2.0  # compared with one image: for latency a batch may take at most this many times as long


def best_for_throughput(engines: Iterable[EngineMeasurement]) -> RecommendedSettings:
    """Returns the server settings for the most images per second: an engine and a batch size.

    The engine is the one with the highest rate at any batch size. The rate of a precision below fp32 is divided by
    LOW_PRECISION_HANDICAP for this comparison. The batch size is the smallest that reaches NEAR_BEST times the highest
    rate of this engine.
    """
    best = max(engines, key=lambda e: max(rate.images_per_second for rate in e.rates) / _handicap(e))
    most = max(rate.images_per_second for rate in best.rates)
    return _settings_at(best, min(rate.batch for rate in best.rates if rate.images_per_second >= NEAR_BEST * most))


def best_for_latency(engines: Iterable[EngineMeasurement]) -> RecommendedSettings:
    """Returns the server settings for the lowest latency: an engine and a batch size.

    The engine is the one with the lowest median time of one image. The time of a precision below fp32 is multiplied by
    LOW_PRECISION_HANDICAP for this comparison. The batch size is the largest that takes at most MAX_SLOWDOWN times as
    long as one image.
    """
    best = min(engines, key=lambda e: e.p50_ms * _handicap(e))
    call_s = {rate.batch: rate.batch * best.streams / rate.images_per_second for rate in best.rates}
    return _settings_at(best, max(batch for batch, s in call_s.items() if s <= MAX_SLOWDOWN * call_s[1]))


def rankings(bundle: Bundle, benchmark: Benchmark) -> list[Ranking]:
    """Returns one ranking of the engines by speed for each number of streams. `open_engine` reads the saved rankings.

    A ranking compares the engines at one batch size. `mixed_batch` of an engine is the batch size at which one β and
    mixed β were compared. The ranking uses the smallest `mixed_batch` of its engines. It omits an engine that was not
    measured at this batch size.
    """
    by_streams = []
    for streams in dict.fromkeys(engine.streams for engine in benchmark.engines):
        engines = [engine for engine in benchmark.engines if engine.streams == streams]
        batch = min(engine.mixed_batch for engine in engines)
        timings = [
            Timing(engine=engine.engine, precision=engine.precision, images_per_second=rate)
            for engine in engines
            if (rate := engine.rate(batch))
        ]
        by_streams.append(
            make_ranking(bundle, EngineOptions(benchmark.threads, streams), timings, batch=batch, by="bench")
        )
    return by_streams


def _settings_at(engine: EngineMeasurement, batch: int) -> RecommendedSettings:
    rate = engine.rate(batch)
    assert rate is not None
    return RecommendedSettings(
        engine=engine.engine,
        precision=engine.precision,
        streams=engine.streams,
        max_batch=batch,
        images_per_second=rate,
        p50_ms=engine.p50_ms,
    )


def _handicap(engine: EngineMeasurement) -> float:
    return 1.0 if engine.precision == "fp32" else LOW_PRECISION_HANDICAP
