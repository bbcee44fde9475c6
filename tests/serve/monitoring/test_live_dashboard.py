"""Prometheus scrapes a running server, and every panel of the dashboard has data. Grafana is not part of this test."""

import io
import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.pictures.signs import drawn_picture

MONITORING = files("serve") / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
CONFIGURATION = Path(__file__).parents[3] / "deploy" / "monitoring" / "prometheus.yml"
PROMETHEUS = shutil.which("prometheus")
BUNDLE = EXAMPLES / "signs"
CLIENTS, PERMITS = 6, 2  # so that the server refuses some requests
INTERVAL_S = 1  # between two scrapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (package prometheus)"),
]


@contextmanager
def prometheus(server, directory):
    """Runs Prometheus with the files of deploy/compose.yaml. Yields a function that queries its HTTP API."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], f"{INTERVAL_S}s")
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (directory / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
    address = f"127.0.0.1:{free_port()}"

    def query(path, **parameters):
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
            return json.load(response)["data"]

    options = [f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen([PROMETHEUS, *options, f"--web.listen-address={address}"], stderr=log)
    try:
        yield query
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@contextmanager
def traffic(server):
    """Sends requests of many kinds until the block ends: images at several β, mixes, sweeps, errors, lost clients."""
    buffer = io.BytesIO()
    drawn_picture("stop", 0).save(buffer, "PNG")
    image = buffer.getvalue()
    pixels = load_bundle(BUNDLE).golden.pixels[:1]
    tensor = {"name": "pixels", "shape": pixels.shape, "datatype": "UINT8", "data": pixels.ravel().tolist()}
    requests = [
        ("/classify", image),
        *((f"/classify?beta={beta}", image) for beta in (0, 0.3, 0.7, 1)),
        ("/classify?mix=clean:0.5,robust:0.5", image),
        ("/sweep?betas=0:1:0.5", image),
        ("/v2/models/signs/infer", json.dumps({"inputs": [tensor]}).encode()),
        ("/classify", b"no image"),
        ("/classify?beta=2", image),
        ("/nowhere", b""),
    ]
    has_ended = threading.Event()

    def send():
        for path, body in itertools.takewhile(lambda _: not has_ended.is_set(), itertools.cycle(requests)):
            server.ask("POST", path, body)

    def disconnect():
        head = f"POST /sweep HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
        while not has_ended.wait(INTERVAL_S / 10):
            with closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
                connection.sendall(head.encode() + image)

    threads = [threading.Thread(target=target) for target in (*[send] * CLIENTS, disconnect)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        has_ended.set()
        for thread in threads:
            thread.join()


def concrete(expression):
    """Returns the expression as Grafana sends it for all jobs and instances, with its least $__rate_interval."""
    values = {"$__rate_interval": f"{4 * INTERVAL_S}s", "$job": ".*", "$instance": ".*"}
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression


def has_data(target, result):
    """Whether a value of the result is a number, and each series has the labels that the legend names."""
    labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    numbers = [series for series in result if math.isfinite(float(series["value"][1]))]
    return bool(numbers) and all(labels <= series["metric"].keys() for series in numbers)


def test_no_panel_is_empty_while_a_server_has_traffic(start_server, tmp_path):
    server = start_server("--disagreement-share", 1, "--max-requests", PERMITS, bundle=BUNDLE)
    server.wait_until_ready()
    empty = {
        (panel["title"], target["refId"]): target
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }
    with prometheus(server, tmp_path) as query:
        deadline = time.monotonic() + DEADLINE_S
        with traffic(server):
            while empty and time.monotonic() < deadline:
                time.sleep(INTERVAL_S)
                try:
                    for name, target in list(empty.items()):
                        if has_data(target, query("query", query=concrete(target["expr"]))["result"]):
                            del empty[name]
                except urllib.error.URLError:  # Prometheus has not started yet
                    continue
            assert list(empty) == []
            for code in ("overloaded", "client_gone", "unsupported_image_type", "invalid_beta"):
                series = f'tureen_rejections_total{{code="{code}"}}'
                server.wait_for(lambda series=series: server.metric(series), series)

        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                assert len(query(f"label/{label}/values", **{"match[]": concrete(selector)})) == 1, variable["name"]
        rules = [rule for group in query("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        quiet = {"TureenDown", "TureenNotReady", "TureenErrors", "TureenEngineFails", "TureenProcessDied"}
        assert {rule["name"] for rule in rules if rule["state"] == "inactive"} >= quiet
