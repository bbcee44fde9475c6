"""The field's own clients against the server as a process: tritonclient over HTTP and gRPC, and kserve's."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "clients.txt"
BETAS = [0.0, 0.3, 1.0]
DEADLINE_S = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clients_python(request):
    """A Python that has the clients, kept until their versions change."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    home = Path(request.config.cache.mkdir("clients")) / digest
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(pip, check=True)
        (home / "installed").touch()
    return python


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(bundle, workers):
    http, grpc = free_port(), free_port()
    flags = ["--port", str(http), "--grpc-port", str(grpc), "--engine", "onnxruntime", "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tureen.cli", "serve", str(bundle.path), *flags], stderr=subprocess.PIPE, text=True
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


# One process each: both register the protocol's messages under the same names.
@pytest.mark.parametrize(("client", "workers"), [("tritonclient", 1), ("kserve", 2)])
def test_the_real_clients_get_the_answers_of_the_library(
    client, workers, clients_python, bundle, library, images, pixels, tmp_path
):
    np.savez(
        tmp_path / "known.npz",
        pixels=pixels,
        betas=np.array(BETAS, np.float32),
        logits=library.logits(pixels, BETAS),
    )
    for index, image in enumerate(images):
        (tmp_path / f"{index}.jpg").write_bytes(image)
    with server(bundle, workers) as (http, grpc):
        environment = {**os.environ, "HTTP_ADDRESS": http, "GRPC_ADDRESS": grpc, "KNOWN": str(tmp_path)}
        environment.pop("PYTHONPATH", None)  # the clients' environment has packages of its own
        isolated = ["-c", os.devnull, "--rootdir", HERE, "--noconftest", "-p", "no:cacheprovider"]
        checks = subprocess.run(
            [clients_python, "-m", "pytest", "-q", *isolated, HERE / f"with_{client}.py"],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert checks.returncode == 0, checks.stdout + checks.stderr


def test_the_inference_service_has_fields_that_kserve_knows(clients_python):
    manifest = HERE.parents[2] / "deploy" / "kubernetes" / "kserve.yaml"
    subprocess.run([clients_python, HERE / "with_kserve_models.py", manifest], check=True)
