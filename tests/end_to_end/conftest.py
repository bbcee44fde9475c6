"""Fixtures that run the commands and the servers of the documentation."""

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked_tureen import SERVING, TRAINING
from tests.patience import DEADLINE_S
from tests.ports import free_port


def environment():
    """The variables of this process, with `tureen` on the path, and one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def run_command(request) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a documented command in a directory: in a fork if it is plain, or else in a shell."""

    def run(command, directory):
        words = shlex.split(command, comments=True)
        is_plain = words[:1] == ["tureen"] and not set("|<>$&;*") & set(command)
        if is_plain and "--ray" not in words:  # Ray copies the process that it finds
            for name, commands in (("forked_tureen", SERVING), ("forked_training", TRAINING)):
                if words[1] in commands:
                    forked = request.getfixturevalue(name)
                    return forked.run(words[1:], directory=directory, env=environment(), timeout=DEADLINE_S)
        return subprocess.run(["sh", "-c", command], cwd=directory, env=environment(), capture_output=True, text=True)

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
