"""Fixtures that run `tureen serve` as a process with the example bundle, and an HTTP client for it."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve.control.revision_store import RevisionStore
from tests.forked_tureen import ForkedProcess
from tests.patience import DEADLINE_S
from tests.ports import free_port
from tests.serve.control.postgres import Postgres
from tureen.bundle.bundle import GOLDEN, MANIFEST, load_bundle, record_files
from tureen.bundle.examples import EXAMPLES

PYTHON_TUREEN = (sys.executable, "-m", "tureen.cli")


@dataclass
class RunningServer:
    """A server process, its port and its log file."""

    process: subprocess.Popen | ForkedProcess
    port: int
    log_file: Path
    host: str = "127.0.0.1"

    def ask(self, method, path, body=None, headers=None):
        """Send a request over a new connection; return status, headers and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def log(self, message=None):
        """Return the log events, or only those with this message."""
        complete = self.log_file.read_text().split("\n")[:-1]  # the last line may be incomplete
        lines = [json.loads(line) for line in complete if line.startswith("{")]
        return [line for line in lines if message in (None, line["message"])]

    def metric(self, series):
        """Return the value of one series of /metrics, or None."""
        for line in self.ask("GET", "/metrics")[2].decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return None

    def wait_for(self, condition, description):
        """Wait until the condition holds; fails if the process ends or the deadline passes."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log_file.read_text()
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        events = [str(line) for line in self.log() if line["message"] != "request"]
        raise AssertionError("\n".join([f"deadline passed: {description}", *events]))

    def wait_until_ready(self, processes=1):
        self.wait_for(lambda: self.metric("tureen_ready") == processes, f"{processes} processes ready")

    def worker_pids(self):
        """Return the pid of the latest process of each worker, by worker number."""
        return {line["worker"]: line["pid"] for line in self.log("worker started")}

    def end(self, signal_number=signal.SIGTERM):
        """Send the signal and return the exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start_server(forked_tureen, tmp_path):
    """A function that starts `tureen serve BUNDLE --port … FLAGS…`. The server is killed when the test ends.

    The server is a fork (see tests.forked_tureen), unless `before` is set.
    before: a command that runs the server, such as setpriv. env: replaces the environment of this process.
    """
    with contextlib.ExitStack() as stack:

        def start(*flags, bundle=EXAMPLES / "cifar10", engine="onnxruntime", before=(), env=None, **environment):
            port = free_port()
            log_file = tmp_path / f"{port}.log"
            command = [*map(str, ("serve", bundle, "--port", port, "--engine", engine, *flags))]
            with log_file.open("w") as log:
                variables = {**(os.environ if env is None else env), **environment}
                if before:
                    process = subprocess.Popen([*before, *PYTHON_TUREEN, *command], stderr=log, env=variables)
                else:
                    process = forked_tureen.start(command, stderr=log, env=variables)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return RunningServer(process, port, log_file)

        yield start


@pytest.fixture(scope="session")
def without_capabilities():
    """A command that runs a program as a user without capabilities, passwd entry and group.

    The user belongs to a new user namespace, so that it may read the files of the present user.
    """
    user = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    return [*user, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@pytest.fixture
def example_bundle(tmp_path):
    """A copy of the example bundle that a test may change."""
    return Path(shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle"))


@pytest.fixture(scope="session")
def break_golden_rows():
    """A function that makes the golden rows of a bundle wrong, with valid hashes."""

    def break_rows(bundle):
        golden = load_bundle(bundle).golden
        golden.logits[0, 0, 0] += 1
        (bundle / GOLDEN).write_bytes(golden.to_bytes())
        manifest = json.loads((bundle / MANIFEST).read_text())
        manifest["files"][GOLDEN] = record_files({GOLDEN: golden.to_bytes()})[GOLDEN].model_dump()
        (bundle / MANIFEST).write_text(json.dumps(manifest))

    return break_rows


@pytest.fixture(scope="session")
def postgres():
    with tempfile.TemporaryDirectory(prefix="tureen-postgres-") as directory:
        server = Postgres(Path(directory) / "server")
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.db'}"
    server = request.getfixturevalue("postgres")
    database = f"t{abs(hash(str(tmp_path)))}"
    with (
        contextlib.closing(RevisionStore(server.url)) as admin,
        admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.exec_driver_sql(f"CREATE DATABASE {database}")
    return server.url.rsplit("/", 1)[0] + f"/{database}"


@pytest.fixture
def store(store_url):
    store = RevisionStore(store_url)
    yield store
    store.close()
