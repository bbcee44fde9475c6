"""Runs the tests of the server and the library with the lowest direct dependencies that pyproject.toml allows."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = "client,serve,grpc,cpu,openvino,postgres,otel,batch,plot"
TOOLS = {
    "duckdb", "hypothesis", "kubernetes-validate", "pandas", "polars", "promql-parser", "psutil", "pytest",
    "pytest-timeout", "pyyaml", "schemathesis",
}  # fmt: skip
NEED_MORE = [  # torch, onnx, TensorRT, Ray, a browser, or packages outside the extras
    "tests/serve/api/console", "tests/serve/jobs/test_ray_cluster.py", "tests/serve/oip/test_clients.py",
    "tests/serve/api/test_single_token.py", "tests/tureen/engines", "tests/tureen/bench",
    "tests/tureen/bundle/test_bundle.py", "tests/tureen/test_cli.py", "tests/tureen/bundle/test_graph_check.py",
    "tests/tureen/bundle/test_graph.py", "tests/tureen/commands/test_completion.py",
    "tests/tureen/commands/test_inspect.py", "tests/tureen/test_preprocess.py",
    "tests/tureen/remote", "tests/tureen/commands/test_transfer.py", "tests/serve/test_served_address.py",
]  # fmt: skip
NEED_TORCH = [
    "tests/tureen/test_soup.py::test_a_model_of_one_token_classifies_without_a_beta_and_refuses_any",
    "tests/tureen/test_soup_sweep.py::test_a_model_of_one_token_has_no_sweep",
]


def constraint_lines(names):
    """Return the lines of constraints.txt for these packages."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [line for line in lines if Requirement(line).name.lower() in names]
    assert {Requirement(line).name.lower() for line in found} == names
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_server_and_the_library_work_with_the_lowest_direct_versions(bundle_path, held_out, tmp_path):
    (digits := tmp_path / "digits").mkdir()
    (digits / "bundle").symlink_to(bundle_path)
    np.savez(digits / "held_out.npz", pixels=held_out.pixels, labels=held_out.labels)
    python = tmp_path / "venv" / "bin" / "python"
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    install = ["pip", "install", "--python", str(python), "--resolution", "lowest-direct", "-e", f"{ROOT}[{EXTRAS}]"]
    subprocess.run([*uv, *install, *constraint_lines(TOOLS)], check=True)
    excluded = [f"--ignore={path}" for path in NEED_MORE] + [f"--deselect={test}" for test in NEED_TORCH]
    tests = [str(python), "-m", "pytest", "-q", "-m", "not slow and not gpu", *excluded, "tests/serve", "tests/tureen"]
    environment = {**os.environ, "TUREEN_TEST_DIGITS": str(digits)}
    assert subprocess.run(tests, cwd=ROOT, env=environment).returncode == 0


def test_every_path_that_the_lowest_versions_leave_out_exists():
    for name in [*NEED_MORE, *NEED_TORCH]:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text()


def test_each_direct_dependency_has_a_floor():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    for requirement in map(Requirement, lines):
        assert requirement.name == "tureen" or ">=" in str(requirement.specifier), requirement
