"""A server sends no data about itself to other machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.watched_server import CONTROL
from tureen.bundle.examples import EXAMPLES

DRIVER = Path(__file__).with_name("watched_server.py")


def files_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_server_looks_up_no_name_and_writes_only_in_its_directories(tmp_path, encode, photograph):
    """auto opens OpenVINO and ONNX Runtime, which report to their makers unless they are kept from it."""
    directories = {name: tmp_path / name for name in ("home", "temporary", "state", "cache")}
    for directory in directories.values():
        directory.mkdir()
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    image = tmp_path / "image.png"
    image.write_bytes(encode(photograph))
    watch = ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable, DRIVER]
    serve = [sys.executable, "-m", "tureen.cli", "serve", EXAMPLES / "cifar10", "--port", 8000, "--admin-port", 8001]
    # Without the variables of this process: under CI=true the runtimes report nothing.
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(directories["home"]),
        "TMPDIR": str(directories["temporary"]),
        "TUREEN_STATE_DIR": str(directories["state"]),
        "TUREEN_CACHE_DIR": str(directories["cache"]),
    }
    ran = subprocess.run(
        [*map(str, [*watch, tmp_path / "resolv.conf", image, *serve])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert (seen["status"], seen["exit_status"]) == (200, 0)
    assert seen["names"] == [CONTROL]
    assert "engine race: openvino" in ran.stderr
    assert "engine race: onnxruntime" in ran.stderr
    assert files_below(directories["home"]) == []
    assert files_below(directories["temporary"]) == []
