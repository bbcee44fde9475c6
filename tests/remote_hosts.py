"""Fixtures that start a local hub and a local S3 server. tests/conftest.py loads this module."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub_server import TOKEN, Hub
from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.bundle.bundle import MANIFEST

REPOSITORY = "ada/digits"
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def hub(monkeypatch):
    """A hub without repositories, which the client of this process and of child processes uses."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    variables = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # The client reads the variables when it is imported, which another test of this process may have done.
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    close_session()
    server.resumed.set()
    server.shutdown()
    server.server_close()
    thread.join(DEADLINE_S)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A moto server, which runs in a separate process: its URL and the log of its requests."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", log=Path(log.name))
        process.terminate()


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """The name of an empty bucket on the moto server."""
    import boto3

    for name, value in {**AWS, "AWS_ENDPOINT_URL": s3_server.url, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    name = f"bundles-{abs(hash(request.node.nodeid)):x}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    client.close()
    return name


def files_of(bundle):
    """The bytes of each file of a bundle by name."""
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def with_manifest(content, **changes):
    """The files of a bundle, by name, with changed fields of the manifest."""
    return {**content, MANIFEST: json.dumps({**json.loads(content[MANIFEST]), **changes}).encode()}
