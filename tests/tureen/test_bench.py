"""The command itself, on the digits; what it makes of figures is tried on made-up ones. No timing is asserted."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from serve.settings import parse_settings
from tureen.bench.recommendations import best_for_latency, best_for_throughput
from tureen.bench.records import BatchRate, Benchmark, EngineMeasurement, EngineSetup, TimedTurn
from tureen.bench.table import benchmark_text
from tureen.bench.worker import Worker
from tureen.bundle.bundle import MANIFEST, load_bundle
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import explain_choice
from tureen.errors import EngineError

NO_FILE = "engines/backbone-int8.onnx"


def run(*arguments):
    command = [sys.executable, "-m", "tureen.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def damaged(bundle_path, tmp_path_factory):
    """The digits, whose manifest lists ONNX Runtime, OpenVINO, and an engine whose file is not there."""
    path = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("bench") / "bundle"))
    manifest = json.loads((path / MANIFEST).read_text())
    fp32 = [row for row in manifest["parity"] if row["precision"] == "fp32"]
    manifest["parity"] = [*fp32, {**fp32[-1], "precision": "int8", "artefact": NO_FILE}]
    manifest["files"][NO_FILE] = {"sha256": "0" * 64, "size": 1}
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def measured(damaged, tmp_path_factory):
    """One run of the command: the benchmark, its picture, and the cache that it wrote to."""
    out = tmp_path_factory.mktemp("measured")
    flags = ("--threads", 2, "--max-batch", 8, "--seconds", 0.5, "--cache-dir", out / "cache")
    result = run(damaged, *flags, "--json", "--plot", out / "bench.png")
    assert result.returncode == 0, result.stderr
    return Benchmark.model_validate(without_flags(json.loads(result.stdout))), out


def without_flags(benchmark):
    for best in ("throughput", "latency"):
        assert benchmark[best].pop("flags").startswith("--engine ")
    return benchmark


def test_every_engine_is_measured_with_each_number_of_streams(measured):
    benchmark, _ = measured
    assert [(e.name, e.streams) for e in benchmark.engines] == [
        (name, streams) for streams in (1, 2) for name in ("onnxruntime fp32", "openvino fp32")
    ]
    for engine in benchmark.engines:
        assert [rate.batch for rate in engine.rates] + engine.skipped == [1, 2, 4, 8]
        assert engine.mixed_batch == max(rate.batch for rate in engine.rates)
        assert min(engine.mixed_ratio, engine.p50_ms, engine.load_s, *(r.images_per_second for r in engine.rates)) > 0
        assert engine.p99_ms >= engine.p50_ms
        # Each has loaded the graph's two megabytes, and none the gigabyte of another process.
        assert engine.memory_bytes is None or 1e6 < engine.memory_bytes < 1e9


def test_an_engine_that_is_not_to_be_had_is_named_with_the_reason(measured):
    benchmark, _ = measured
    assert [(out.engine, out.precision, out.streams) for out in benchmark.left_out] == [
        ("openvino", "int8", 1),
        ("openvino", "int8", 2),
    ]
    assert all("is missing" in out.reason for out in benchmark.left_out)


def test_the_best_settings_are_flags_that_the_server_takes(measured):
    benchmark, _ = measured
    for setting in (benchmark.throughput, benchmark.latency):
        settings = parse_settings(["bundle", "--threads", "2", *setting.flags.split()], {})
        assert (settings.engine, settings.precision) == (setting.engine, setting.precision)
        assert (settings.streams, settings.max_batch) == (setting.streams, setting.max_batch)


def test_the_picture_is_a_png(measured):
    _, out = measured
    with Image.open(out / "bench.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert image.height > 500
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # a line for each engine


@pytest.mark.parametrize("streams", [1, 2])
def test_auto_opens_what_was_measured_best_without_a_race(measured, damaged, streams, caplog):
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


def test_the_table_shows_engines_reasons_and_what_to_type(damaged, tmp_path):
    result = run(damaged, "--threads", 1, "--max-batch", 2, "--seconds", 0.1, "--cache-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # progress is for a terminal
    for shown in ("onnxruntime fp32", "openvino fp32", "left out: openvino int8", "p99", f"Kept in {tmp_path}"):
        assert shown in result.stdout
    assert len(re.findall(rf"  tureen serve {damaged} --engine \S+ --precision fp32", result.stdout)) == 2


def test_without_any_engine_the_reasons_are_the_error(damaged, tmp_path):
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["parity"] = manifest["parity"][-1:]
    shutil.copytree(damaged, tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    result = run(tmp_path / "bundle", "--threads", 1, "--cache-dir", tmp_path / "cache")
    assert result.returncode == 1
    assert re.search("no engine can run .*: openvino int8: .* is missing", result.stderr)
    assert not (tmp_path / "cache").exists()


def test_a_worker_that_dies_is_an_engine_that_is_out(bundle_path):
    worker = Worker(
        EngineSetup(bundle=str(bundle_path), engine="onnxruntime", precision="fp32", threads=1, streams=1, max_batch=2)
    )
    assert len(worker.run_turn(TimedTurn(batch=2, calls=3)).call_seconds) == 3
    worker._process.kill()
    with pytest.raises(EngineError, match="ended by itself, with status -9"):
        worker.run_turn(TimedTurn(batch=1, calls=1))
    worker.close()


def engine(name, rates, *, p50_ms=1.0, streams=1):
    return EngineMeasurement(
        engine=name.split()[0],
        precision=name.split()[1],
        engine_version="1",
        streams=streams,
        load_s=1,
        memory_bytes=None,
        rates=[BatchRate(batch=batch, images_per_second=rate) for batch, rate in rates.items()],
        skipped=[batch for batch in (1, 2, 4) if batch not in rates],
        mixed_batch=max(rates),
        mixed_ratio=1.01,
        p50_ms=p50_ms,
        p99_ms=2 * p50_ms,
        latency_calls=100,
    )


def test_throughput_takes_the_least_batch_that_comes_near_the_most():
    best = best_for_throughput([engine("a fp32", {1: 50}), engine("b fp32", {1: 10, 2: 60, 4: 97, 8: 100, 16: 99})])
    assert (best.engine, best.max_batch, best.images_per_second) == ("b", 4, 97)


def test_latency_takes_the_largest_batch_that_takes_at_most_twice_as_long_as_one_image():
    engines = [engine("a fp32", {1: 100, 2: 180, 4: 210, 8: 220}, p50_ms=10), engine("b fp32", {1: 50}, p50_ms=20)]
    best = best_for_latency(engines)
    assert (best.engine, best.max_batch) == ("a", 4 if 4 / 210 <= 2 / 100 else 2)


@pytest.mark.parametrize(("rate", "p50_ms", "best"), [(105, 0.95, "fp32"), (115, 0.85, "bf16")])
def test_a_lower_precision_has_to_be_worth_its_error(rate, p50_ms, best):
    engines = [engine("a fp32", {1: 100}), engine("a bf16", {1: rate}, p50_ms=p50_ms)]
    assert best_for_throughput(engines).precision == best
    assert best_for_latency(engines).precision == best


def test_a_batch_that_was_skipped_is_a_dash_and_said(measured):
    benchmark, _ = measured
    engines = [engine("a fp32", {1: 5, 2: 9}), engine("b fp32", {1: 50, 2: 90, 4: 100.4})]
    text = benchmark_text(benchmark.model_copy(update={"engines": engines}), Path("bundle"))
    assert re.search(r"a fp32 +1 +5\.0 +9\.0 +—\n", text)
    assert re.search(r"b fp32 +1 +50\.0 +90\.0 +100\n", text)
    assert "raise --seconds" in text
