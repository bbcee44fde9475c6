"""Fixtures that run the commands and the servers of the documentation."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a documented command in a directory."""

    def run(command, directory):
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(["sh", "-c", command], cwd=directory, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def served() -> Callable:
    """A context manager that runs a documented `tureen serve … --port 8000` on a free port, and yields its URL."""

    @contextmanager
    def serve(command, directory):
        port = str(free_port())
        arguments = command.replace("8000", port).split()
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]], cwd=directory, stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE_S) == 0

    return serve


@pytest.fixture
def admin_port(tmp_path, monkeypatch):
    """The port of the admin listener, set in the environment for documented servers and commands."""
    port = free_port()
    monkeypatch.setenv("TUREEN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TUREEN_ADMIN_PORT", str(port))
    monkeypatch.setenv("TUREEN_ADMIN_URL", f"http://127.0.0.1:{port}")
    return str(port)
