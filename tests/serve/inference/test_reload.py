"""SIGHUP: the server replaces its bundle, and requests differ only in the version of their responses."""

import http.client
import io
import json
import shutil
import signal
import threading

import pytest
from PIL import Image

from tests.patience import DEADLINE_S
from tureen.bundle.bundle import MANIFEST


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    return buffer.getvalue()


def replace_with_version(bundle, version):
    replace_with(bundle, version=version)


def replace_with(bundle, **changes):
    """Replaces the bundle by one with another manifest, atomically, as a deployment does."""
    following = bundle.with_name("following")
    shutil.copytree(bundle, following)
    manifest = json.loads((following / MANIFEST).read_text())
    (following / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    bundle.rename(bundle.with_name("before"))
    following.rename(bundle)


class Client(threading.Thread):
    """Sends requests on one connection until `until` is set. Keeps the status and version of each response."""

    def __init__(self, port, until):
        super().__init__(daemon=True)
        self.port = port
        self.until = until
        self.responses = []

    def run(self):
        image = png()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        while not self.until.is_set():
            try:
                connection.request("POST", "/classify?beta=0.5", image)
                response = connection.getresponse()
                self.responses.append((response.status, json.loads(response.read()).get("version")))
            except (OSError, http.client.HTTPException) as error:
                self.responses.append((repr(error), None))
                self.until.set()
        connection.close()


def test_the_temperatures_of_a_bundle_take_effect_on_a_reload(start_server, example_bundle):
    row = {"n_fitted": 50, "n": 50, "error_before": 0.1, "error": 0.02}
    replace_with(example_bundle, schema_version=3, calibration=[])
    shutil.rmtree(example_bundle.with_name("before"))
    server = start_server(bundle=example_bundle)
    server.wait_until_ready()
    before = json.loads(server.ask("POST", "/classify?beta=0.5&top_k=10", png())[2])
    rows = [{**row, "beta": 0, "temperature": 2}, {**row, "beta": 1, "temperature": 4}]
    replace_with(example_bundle, calibration=rows)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == 1, "reloaded")
    after = json.loads(server.ask("POST", "/classify?beta=0.5&top_k=10", png())[2])
    assert (before["calibrated"], after["calibrated"]) == (False, True)
    assert [one["label"] for one in after["predictions"]] == [one["label"] for one in before["predictions"]]
    # The probabilities at the temperature 3 are the cube roots of those before, divided by their sum.
    roots = [one["probability"] ** (1 / 3) for one in before["predictions"]]
    expected = [root / sum(roots) for root in roots]
    assert [one["probability"] for one in after["predictions"]] == pytest.approx(expected, abs=1e-5)


def version(server):
    return json.loads(server.ask("POST", "/classify", png())[2])["version"]


@pytest.mark.parametrize("workers", [1, 2])
def test_under_load_every_response_comes_from_one_bundle_or_the_other(start_server, example_bundle, workers):
    server = start_server("--workers", workers, bundle=example_bundle)
    server.wait_until_ready(workers)
    before = version(server)
    until = threading.Event()
    clients = [Client(server.port, until) for _ in range(8)]
    for client in clients:
        client.start()
    server.wait_for(lambda: min(len(client.responses) for client in clients) > 10, "under load")
    replace_with_version(example_bundle, "following")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == workers, "reloaded")
    reached = [len(client.responses) for client in clients]
    server.wait_for(
        lambda: all(len(client.responses) > count + 5 for client, count in zip(clients, reached, strict=True)), "more"
    )
    until.set()
    for client in clients:
        client.join(DEADLINE_S)
        assert not client.is_alive()
        assert {status for status, _ in client.responses} == {200}
        versions = [version for _, version in client.responses]
        assert versions == [before] * versions.count(before) + ["following"] * versions.count("following")
        assert versions[-1] == "following"
    assert server.metric("tureen_ready") == workers
    assert server.log("worker died") == []
    assert server.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_bundle_is_reported_and_not_served(start_server, example_bundle, break_golden_rows, workers):
    server = start_server("--workers", workers, bundle=example_bundle)
    server.wait_until_ready(workers)
    before = version(server)
    replace_with_version(example_bundle, "broken")
    break_golden_rows(example_bundle)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="failed"}') == 1, "refused")
    if workers > 1:
        server.wait_for(lambda: [line for line in server.log() if "reload stopped" in line["message"]], "stopped")
    assert any("does not reproduce the golden rows" in line["message"] for line in server.log())
    assert {version(server) for _ in range(8)} == {before}
    assert server.metric("tureen_ready") == workers
    shutil.rmtree(example_bundle)
    example_bundle.with_name("before").rename(example_bundle)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == workers, "reloaded after all")
    assert server.end() == 0
