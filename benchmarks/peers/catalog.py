"""The peers: how each is installed and started, its settings, its requests and its responses.

The default settings are those that the peer has when a program sets none. The search for the best settings starts from
`start` and tries the values of `choices`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.classifier import OPTIONS
from benchmarks.peers.environments import ENVIRONMENTS, Environment
from benchmarks.peers.search import Settings
from benchmarks.server_process import Server, free_port, run_server
from benchmarks.workload import ROOT
from tureen.bundle.bundle import Bundle
from tureen.machine import available_cpus, default_cache_directory

BOUNDARY = b"tureen"
PROCESSES = tuple(dict.fromkeys((1, available_cpus())))
BATCHES = (1, 8, 16, 32)
BATCH_TIMEOUTS = (0.0, 0.002, 0.01)


@dataclass(frozen=True)
class Peer:
    """A server of another project.

    module: the program that serves a bundle. ready: the path whose GET response shows that the server is ready.
    request: from an image file to the complete HTTP request. response: from the parsed body of a response to the
    response of the Classifier. variables: environment variables of the server for settings.
    """

    name: str
    environment: Environment
    module: str
    ready: str
    defaults: Settings
    start: Settings
    choices: Mapping[str, tuple[Any, ...]]
    request: Callable[[bytes], bytes]
    response: Callable[[Any], dict[str, Any]]
    variables: Callable[[Settings], dict[str, str]] = lambda settings: {}

    @contextmanager
    def run(self, python: Path, bundle: Bundle, engine: tuple[str, str], settings: Settings) -> Iterator[Server]:
        """Runs the server with these settings, and yields it when it is ready.

        python: the interpreter of the environment. engine: name and precision.
        """
        port = free_port()
        options = {
            "bundle": str(bundle.path), "port": port, "other_ports": [free_port(), free_port()],
            "engine": engine[0], "precision": engine[1], **settings,
        }  # fmt: skip
        environment = {"PYTHONPATH": str(ROOT), OPTIONS: json.dumps(options), **self.variables(settings)}
        with run_server([str(python), "-m", self.module], port, self.ready, environment) as server:
            yield server


def post(path: str, content_type: str, body: bytes) -> bytes:
    """Returns a complete HTTP request with this body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def form_request(path: str, field: str, image: bytes) -> bytes:
    """Returns a complete HTTP request with the image as a form file."""
    kind = media_type(image)
    head = f'Content-Disposition: form-data; name="{field}"; filename="image"\r\nContent-Type: {kind}\r\n\r\n'.encode()
    body = b"--" + BOUNDARY + b"\r\n" + head + image + b"\r\n--" + BOUNDARY + b"--\r\n"
    return post(path, f"multipart/form-data; boundary={BOUNDARY.decode()}", body)


def inference_request(image: bytes) -> bytes:
    """Returns a complete HTTP request of the Open Inference Protocol, with the image in base64."""
    data = base64.b64encode(image).decode()
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [data]}
    body = json.dumps({"inputs": [{**tensor, "parameters": {"content_type": "base64"}}]})
    return post("/v2/models/classifier/infer", "application/json", body.encode())


def media_type(image: bytes) -> str:
    """Returns the media type of a JPEG or PNG file."""
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


LITSERVE = Peer(
    name="LitServe",
    environment=ENVIRONMENTS["litserve"],
    module="benchmarks.peers.litserve_server",
    ready="/health",
    defaults={
        "workers": 1, "threads": 1, "max_batch_size": 1, "batch_timeout": 0.0, "fast_queue": False, "api_servers": 1,
    },
    start={
        "workers": 1, "threads": 1, "max_batch_size": 16, "batch_timeout": 0.002, "fast_queue": False, "api_servers": 1,
    },
    choices={
        "workers": PROCESSES,
        "threads": PROCESSES,
        "max_batch_size": BATCHES,
        "batch_timeout": BATCH_TIMEOUTS,
        "fast_queue": (False, True),
        "api_servers": PROCESSES,
    },
    request=lambda image: form_request("/predict", "request", image),
    response=lambda body: body,
)  # fmt: skip

BENTOML = Peer(
    name="BentoML",
    environment=ENVIRONMENTS["bentoml"],
    module="benchmarks.peers.bentoml_service",
    ready="/readyz",
    defaults={"workers": 1, "threads": 1, "max_batch_size": 1, "max_latency_ms": 60_000},
    start={"workers": 1, "threads": available_cpus(), "max_batch_size": 16, "max_latency_ms": 60_000},
    choices={
        "workers": PROCESSES,
        "threads": PROCESSES,
        "max_batch_size": BATCHES,
        "max_latency_ms": (1_000, 10_000, 60_000),
    },
    request=lambda image: form_request("/classify", "images", image),
    response=lambda body: body[0],
    variables=lambda settings: {
        "BENTOML_HOME": str(default_cache_directory() / "benchmarks" / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    },
)

RAY_SERVE = Peer(
    name="Ray Serve",
    environment=ENVIRONMENTS["ray-serve"],
    module="benchmarks.peers.ray_serve_app",
    ready="/",
    defaults={
        "workers": 1, "threads": 1, "max_batch_size": 1, "batch_timeout": 0.0, "max_ongoing_requests": 5,
        "throughput_optimized": False, "haproxy": False,
    },
    start={
        "workers": 1, "threads": available_cpus(), "max_batch_size": 16, "batch_timeout": 0.002,
        "max_ongoing_requests": 100, "throughput_optimized": False, "haproxy": False,
    },
    choices={
        "throughput_optimized": (False, True),
        "haproxy": (False, True),  # HAProxy listens on all interfaces of this machine
        "workers": PROCESSES,
        "threads": PROCESSES,
        "max_batch_size": BATCHES,
        "batch_timeout": BATCH_TIMEOUTS,
    },
    request=lambda image: post("/", media_type(image), image),
    response=lambda body: body,
    variables=lambda settings: {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": str(int(settings["throughput_optimized"])),
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(settings["haproxy"])),
    },
)  # fmt: skip

MLSERVER = Peer(
    name="MLServer",
    environment=ENVIRONMENTS["mlserver"],
    module="benchmarks.peers.mlserver_runtime",
    ready="/v2/models/classifier/ready",
    defaults={"workers": 1, "threads": 1, "max_batch_size": 0, "batch_timeout": 0.0},
    start={"workers": 1, "threads": available_cpus(), "max_batch_size": 16, "batch_timeout": 0.002},
    choices={
        "workers": tuple(dict.fromkeys((0, *PROCESSES))),
        "threads": PROCESSES,
        "max_batch_size": (0, *BATCHES[1:]),
        "batch_timeout": BATCH_TIMEOUTS[1:],
    },
    request=inference_request,
    response=lambda body: json.loads(body["outputs"][0]["data"][0]),
)

PEERS: dict[str, Peer] = {"litserve": LITSERVE, "bentoml": BENTOML, "ray-serve": RAY_SERVE, "mlserver": MLSERVER}
