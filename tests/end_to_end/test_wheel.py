"""The server as in production: a wheel, its serving extra, an empty environment of each supported Python, no torch.

The default tests use the Python that runs them; `make wheel` uses every one that is installed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PYTHONS = [line.rpartition(" ")[2] for line in CLASSIFIERS if line.startswith("Programming Language :: Python :: 3.")]


def interpreter(version):
    """The path of a Python of this version: the one that runs the tests, one on PATH, or one that pyenv installed."""
    if is_running(version):
        return sys.executable
    for python in (shutil.which(f"python{version}"), *PYENV.glob(f"versions/{version}.*/bin/python")):
        # A shim of pyenv on PATH may have no interpreter.
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = directory.glob("tureen-*.whl")
    return wheel


def is_running(version):
    return sys.version_info[:2] == tuple(map(int, version.split(".")))


# The other versions are slow tests: an installation takes a minute on a slow machine.
VERSIONS = [pytest.param(one, marks=() if is_running(one) else pytest.mark.slow) for one in PYTHONS]


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request, wheel, tmp_path_factory):
    """The python of a new environment in which only the wheel and its serving extra are installed."""
    if (base := interpreter(request.param)) is None:
        pytest.skip(f"Python {request.param} is missing")
    directory = tmp_path_factory.mktemp("installed")
    subprocess.run([base, "-m", "venv", directory / "venv"], check=True)
    python = directory / "venv" / "bin" / "python"
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",  # the server compiles the few modules that it imports
        "-c",
        ROOT / "constraints.txt",
        f"tureen[serve,cpu] @ {wheel.as_uri()}",
    ]
    subprocess.run(pip, check=True)
    return python


def test_a_wheel_with_the_serving_extra_serves_a_bundle_without_torch(installed, bundle_path, digit_png, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    packages = json.loads(
        subprocess.check_output([installed, "-m", "pip", "list", "--format", "json"], env=environment, cwd=tmp_path)
    )
    names = {package["name"].lower() for package in packages}
    assert "onnxruntime" in names
    assert not names & {"torch", "onnx", "scikit-learn", "matplotlib"}
    port = free_port()
    tureen = installed.parent / "tureen"
    server = subprocess.Popen([tureen, "serve", bundle_path, "--port", str(port)], env=environment, cwd=tmp_path)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/readyz")
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with urllib.request.urlopen(f"{url}/classify?beta=0.5", digit_png(0)) as response:
            assert json.load(response)["beta"] == 0.5
        for path in ("/docs/static/swagger-ui-bundle.js", "/docs/static/swagger-ui.css", "/ui/static/console.js"):
            with urllib.request.urlopen(f"{url}{path}") as response:
                assert response.status == 200
        check_health(installed, port)
    finally:
        server.terminate()
        assert server.wait(DEADLINE_S) == 0


def check_health(python, port):
    """The image's own health check, taken from the Dockerfile, passes against this server and fails against none."""
    line = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("HEALTHCHECK"))
    program = json.loads(line[line.index("[") :])
    assert program[:2] == ["python", "-c"]
    for served, code in ((port, 0), (1, 1)):
        command = [python, "-c", program[2]]
        environment = {"TUREEN_PORT": str(served)}
        assert subprocess.run(command, env=environment, capture_output=True).returncode == code


def test_the_other_commands_name_the_extra_they_need(installed, tmp_path):
    commands = (("train digits", "train"), ("export digits --out new", "export"), ("demo --train digits", "demo"))
    for command, extra in commands:
        arguments = [installed.parent / "tureen", *command.split()]
        result = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 1
        assert f"install Tureen with its extra [{extra}]" in result.stderr


def test_the_image_has_no_torch_and_no_root():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert not any("torch" in line or "[train" in line or "[demo" in line for line in lines if not line.startswith("#"))
    assert any(line.startswith("USER ") and line.split()[1] not in ("root", "0") for line in lines)
