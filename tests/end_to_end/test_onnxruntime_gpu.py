"""onnxruntime-gpu as it is installed, without a GPU: the CPU engine works, and the GPU engines are refused aloud."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine
from tureen.errors import EngineError
bundle = load_bundle(sys.argv[1])
for engine in ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"):
    try:
        compile_engine(bundle.graph, engine).close()
        print(engine, "runs")
    except EngineError as error:
        print(engine, error)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment with onnxruntime-gpu, but not the gigabytes of CUDA that it needs to run on a GPU."""
    directory = tmp_path_factory.mktemp("gpu")
    venv.create(directory, with_pip=True)
    pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", str(ROOT)], check=True)
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", "cuda-bindings", "flatbuffers", "protobuf"], check=True)
    subprocess.run([*pip, "--no-deps", "onnxruntime-gpu>=1.30"], check=True)
    return directory / "bin" / "python"


def run(python, bundle):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    return subprocess.run([python, "-c", PROGRAM, bundle], capture_output=True, text=True, env=environment, check=True)


@pytest.mark.slow
def test_a_gpu_that_is_missing_is_never_replaced_by_the_cpu_without_a_word(python, bundle_path):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    lines = run(python, bundle_path).stdout.splitlines()
    assert lines[0] == "onnxruntime runs"
    assert len(lines) == 3
    for line in lines[1:]:
        assert "fell back to CPUExecutionProvider" in line or "no NVIDIA GPU" in line


@pytest.mark.slow
def test_both_packages_together_are_refused(python, bundle_path):
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "onnxruntime>=1.30"], check=True)
    for line in run(python, bundle_path).stdout.splitlines():
        assert "pip uninstall onnxruntime onnxruntime-gpu" in line
