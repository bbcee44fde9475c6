"""One run of `tureen bench` on the digits, and made-up measurements. No timing is asserted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tureen.bench.records import BatchRate, Benchmark, EngineMeasurement
from tureen.bundle.bundle import MANIFEST

NO_FILE = "engines/backbone-int8.onnx"


def run(*arguments):
    command = [sys.executable, "-m", "tureen.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def damaged(bundle_path, tmp_path_factory):
    """The digits, whose manifest lists ONNX Runtime, OpenVINO, and an engine whose file is not there."""
    path = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("bench") / "bundle"))
    manifest = json.loads((path / MANIFEST).read_text())
    fp32 = [row for row in manifest["parity"] if row["precision"] == "fp32"]
    manifest["parity"] = [*fp32, {**fp32[-1], "precision": "int8", "artefact": NO_FILE}]
    manifest["files"][NO_FILE] = {"sha256": "0" * 64, "size": 1}
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="session")
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
