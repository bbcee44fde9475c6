import logging

import pytest

from tests.tureen.bench.conftest import engine
from tureen.bench.recommendations import best_for_latency, best_for_throughput
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import explain_choice


@pytest.mark.parametrize("streams", [1, 2])
def test_auto_opens_the_fastest_measured_engine_without_a_race(measured, damaged, streams, caplog):
    benchmark, out = measured
    caplog.set_level(logging.INFO, "tureen.engines")
    options = EngineOptions(threads=2, streams=streams, cache=out / "cache")
    bundle = load_bundle(damaged)
    assert f"measured {benchmark.measured_on} by bench at batch" in explain_choice(bundle, options)
    engine = open_engine(bundle, options=options)
    engine.close()
    engines = [e for e in benchmark.engines if e.streams == streams]
    batch = min(e.mixed_batch for e in engines)
    assert engine.name == max(engines, key=lambda e: e.rate(batch)).engine
    assert "race: " not in caplog.text


def test_throughput_uses_the_smallest_batch_near_the_maximum():
    best = best_for_throughput([engine("a fp32", {1: 50}), engine("b fp32", {1: 10, 2: 60, 4: 97, 8: 100, 16: 99})])
    assert (best.engine, best.max_batch, best.images_per_second) == ("b", 4, 97)


def test_latency_uses_the_largest_batch_within_twice_the_time_of_one_image():
    engines = [engine("a fp32", {1: 100, 2: 180, 4: 210, 8: 220}, p50_ms=10), engine("b fp32", {1: 50}, p50_ms=20)]
    best = best_for_latency(engines)
    assert (best.engine, best.max_batch) == ("a", 4 if 4 / 210 <= 2 / 100 else 2)


@pytest.mark.parametrize(("rate", "p50_ms", "best"), [(105, 0.95, "fp32"), (115, 0.85, "bf16")])
def test_a_lower_precision_has_to_be_worth_its_error(rate, p50_ms, best):
    engines = [engine("a fp32", {1: 100}), engine("a bf16", {1: rate}, p50_ms=p50_ms)]
    assert best_for_throughput(engines).precision == best
    assert best_for_latency(engines).precision == best
