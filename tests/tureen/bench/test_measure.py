import json
import re
import shutil

from tests.tureen.bench.conftest import run
from tureen.bundle.bundle import MANIFEST


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


def test_an_engine_that_is_not_available_is_named_with_the_reason(measured):
    benchmark, _ = measured
    assert [(out.engine, out.precision, out.streams) for out in benchmark.left_out] == [
        ("openvino", "int8", 1),
        ("openvino", "int8", 2),
    ]
    assert all("is missing" in out.reason for out in benchmark.left_out)


def test_without_any_engine_the_reasons_are_the_error(damaged, tmp_path):
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["parity"] = manifest["parity"][-1:]
    shutil.copytree(damaged, tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    result = run(tmp_path / "bundle", "--threads", 1, "--cache-dir", tmp_path / "cache")
    assert result.returncode == 1
    assert re.search("no engine can run .*: openvino int8: .* is missing", result.stderr)
    assert not (tmp_path / "cache").exists()
