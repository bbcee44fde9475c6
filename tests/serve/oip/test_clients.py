"""tritonclient and kserve's client against the server, over HTTP and gRPC, in one environment."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
REQUIREMENTS = HERE / "clients.txt"
EXTRAS = ("serve", "grpc", "cpu")
BETAS = [0.0, 0.3, 1.0]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the fixture installs an environment


@pytest.fixture(scope="module")
def python(request):
    """Returns a Python with the server and the clients. pytest's cache keeps it until a version changes."""
    texts = [path.read_text() for path in (REQUIREMENTS, ROOT / "pyproject.toml", ROOT / "constraints.txt")]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:12]
    home = Path(request.config.cache.mkdir("clients")) / digest
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        (home / "constraints.txt").write_text("\n".join(server_versions()))
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        server = ["-e", f"{ROOT}[{','.join(EXTRAS)}]"]
        subprocess.run([*pip, "-c", home / "constraints.txt", *server, "-r", REQUIREMENTS], check=True)
        (home / "installed").touch()
    return python


def server_versions():
    """Returns the tested versions of the server's direct dependencies. pip chooses the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in needed}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


@contextmanager
def server(python, environment, bundle, workers):
    http, grpc = free_port(), free_port()
    flags = ["--port", str(http), "--grpc-port", str(grpc), "--engine", "onnxruntime", "--workers", str(workers)]
    process = subprocess.Popen(
        [python, "-m", "tureen.cli", "serve", str(bundle.path), *flags],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready")
                break
            except (urllib.error.HTTPError, urllib.error.URLError):
                time.sleep(0.05)
        yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=DEADLINE_S)[1]
        assert process.returncode == 0
        assert "Traceback" not in log
    finally:
        process.kill()
        process.communicate()


# Each client has its own process, since both register the protocol's messages under the same names.
@pytest.mark.parametrize(("client", "workers"), [("tritonclient", 1), ("kserve", 2)])
def test_the_real_clients_get_the_results_of_the_library(
    client, workers, python, bundle, library, images, pixels, tmp_path
):
    np.savez(
        tmp_path / "known.npz",
        pixels=pixels,
        betas=np.array(BETAS, np.float32),
        logits=library.logits(pixels, BETAS),
    )
    for index, image in enumerate(images):
        (tmp_path / f"{index}.jpg").write_bytes(image)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with server(python, environment, bundle, workers) as (http, grpc):
        known = {"HTTP_ADDRESS": http, "GRPC_ADDRESS": grpc, "KNOWN": str(tmp_path)}
        isolated = ["-c", os.devnull, "--rootdir", HERE, "--noconftest", "-p", "no:cacheprovider"]
        checks = subprocess.run(
            [python, "-m", "pytest", "-q", *isolated, HERE / f"with_{client}.py"],
            env={**environment, **known},
            capture_output=True,
            text=True,
        )
    assert checks.returncode == 0, checks.stdout + checks.stderr


def test_the_manifests_have_fields_that_kserve_knows(python, tmp_path):
    manifests = [ROOT / "deploy" / "kubernetes" / name for name in ("kserve.yaml", "kserve-runtime.yaml")]
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (example,) = (
        block for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "kind:" in block
    )
    (tmp_path / "example.yaml").write_text(example)
    subprocess.run([python, HERE / "with_kserve_models.py", *manifests, tmp_path / "example.yaml"], check=True)


def test_the_server_and_the_clients_agree_on_every_version(python):
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
