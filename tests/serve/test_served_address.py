"""`tureen serve` with an address: SIGHUP resolves a branch again, and the cache serves without the hub."""

import io
import json
import os
import signal

import pytest
from PIL import Image

from tests.remote_hosts import REPOSITORY, files_of, with_manifest
from tureen.bundle.examples import EXAMPLES


def versions(server):
    """The versions in the responses to eight connections, which all workers accept."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    return {json.loads(server.ask("POST", "/classify", buffer.getvalue())[2])["version"] for _ in range(8)}


def reload(server, outcome, count):
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric(f'tureen_reloads_total{{outcome="{outcome}"}}') == count, "reloaded")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_branch_is_resolved_at_each_reload_and_a_restarted_worker_serves_the_same(
    hub, start_server, tmp_path, workers
):
    files = files_of(EXAMPLES / "cifar10")
    hub.commit(REPOSITORY, with_manifest(files, version="first"))
    server = start_server("--workers", workers, "--cache-dir", tmp_path / "cache", bundle=f"hf://{REPOSITORY}@main")
    server.wait_until_ready(workers)
    assert versions(server) == {"first"}
    hub.commit(REPOSITORY, with_manifest(files, version="second"))
    reload(server, "ok", workers)
    assert versions(server) == {"second"}
    if workers > 1:
        hub.commit(REPOSITORY, with_manifest(files, version="third"))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_for(lambda: len(server.log("worker started")) == 3, "started again")
        server.wait_until_ready(workers)
        assert versions(server) == {"second"}
    hub.status = 404
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: [line for line in server.log() if line["message"].startswith("reload failed, ")], "refused")
    assert versions(server) == {"second"}
    assert server.end() == 0


def test_a_server_starts_from_the_cache_while_the_hub_is_unavailable(hub, start_server, tmp_path):
    hub.commit(REPOSITORY, files_of(EXAMPLES / "cifar10"))
    flags = ("--cache-dir", tmp_path / "cache")
    first = start_server(*flags, bundle=f"hf://{REPOSITORY}")
    first.wait_until_ready()
    assert first.end() == 0
    hub.status = 503
    second = start_server(*flags, bundle=f"hf://{REPOSITORY}")
    second.wait_until_ready()
    warned = [line["message"] for line in second.log() if line["level"] == "warning"]
    assert any("status 503" in line and "using the cached copy of" in line for line in warned), warned
    assert second.end() == 0


def test_a_server_without_a_bundle_at_its_address_ends_with_the_reason(hub, start_server):
    server = start_server(bundle=f"hf://{REPOSITORY}")
    assert server.process.wait(60) == 1
    assert f"there is no bundle at hf://{REPOSITORY} (404)" in server.log_file.read_text()
