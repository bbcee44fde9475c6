"""An empty cache, a small bundle, and a process that runs a command beside the test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tureen.bundle.examples import EXAMPLES


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, also of child processes."""
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path):
    """A copy of the example cifar10."""
    return Path(shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle"))


@pytest.fixture
def start_tureen(tmp_path):
    """A function that starts a `tureen` command in a process, and kills it at the end of the test."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "tureen.cli", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
