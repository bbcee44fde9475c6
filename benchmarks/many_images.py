"""Measures the ways in which a client can send many small images, each as a share of the bare engine.

    python -m benchmarks.many_images signs

Each way classifies images of the model's size at one β, from a client process that keeps the server busy. The bare
engine runs full batches in this process, without a server, on all cores. It runs before each way. The share is the CPU
time of the bare engine for an image, divided by that of the server. It is the share of the rate that is left when the
client and other programs have other cores. Rates are printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio
import numpy as np
import uvloop

from benchmarks.load import closed_loop
from benchmarks.machine import describe_machine
from benchmarks.profile_request import thread_ns
from benchmarks.server_process import free_port, run_tureen
from benchmarks.targets import median, ratio, report_target
from benchmarks.throughput import encode_png, png_requests
from serve.oip.proto import inference_pb2 as pb
from serve.oip.request import PIXELS
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import find_bundle
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.machine import available_cpus, default_cache_directory
from tureen.tokens import mix_rows

IMAGES = 64  # in a request of several images
ENGINE_BATCH = 32  # the default of --max-batch
CONNECTIONS = 64  # of requests with one image
PARALLEL = 3  # requests of several images, or streams of them, in progress at a time
BETA = 0.5
SERVICE = "/inference.GRPCInferenceService"

Way = Callable[[int, int, float], Coroutine[Any, Any, int]]
"""Sends requests to the HTTP port or the gRPC port for some seconds. Returns the number of classified images."""


@dataclass(frozen=True)
class Measurement:
    """The images per second, and the CPU time of an image in microseconds."""

    images_per_s: float
    core_us: float

    def __str__(self) -> str:
        return f"{self.images_per_s:7.0f} images/s, {self.core_us:6.0f} core-µs an image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="signs", help="bundle, or name of an example (default: signs)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way (default: %(default)s)")
    options = parser.parse_args()
    print(describe_machine())
    bundle = load_bundle(find_bundle(options.bundle))
    shares: dict[str, list[float]] = {}
    grpc_port = free_port()
    flags = ("--grpc-port", str(grpc_port), "--max-queue-ms", "60000")  # no request is refused on a slow machine
    # A process for the client, with its own interpreter lock.
    client = multiprocessing.get_context("spawn").Pool(1)
    with client, run_tureen(bundle.path, *flags) as server, BareEngine(bundle) as engine:
        for turn in range(options.rounds + 1):
            for name, (way, _) in ways(bundle).items():
                with server.suspended():
                    bare = engine.measure(options.seconds)
                before, started = sum(thread_ns(server.pid).values()), time.perf_counter()
                images = client.apply(run_way, (way, server.port, grpc_port, options.seconds))
                seconds, used_ns = time.perf_counter() - started, sum(thread_ns(server.pid).values()) - before
                served = Measurement(images / seconds, used_ns / 1000 / images)
                if turn:  # else the warm-up
                    shares.setdefault(name, []).append(ratio(bare.core_us, served.core_us))
                    print(f"  {name:<44} {served}; bare engine {bare}", flush=True)
    print()
    for name, (_, target) in ways(bundle).items():
        report_target(name, "≥", target, median(shares[name]), "of the bare engine")


def ways(bundle: Bundle) -> dict[str, tuple[Way, float]]:
    """Returns each way by its name, with the target of its share; 0: no target."""
    pixels = np.resize(bundle.golden.pixels, (IMAGES, *bundle.golden.pixels.shape[1:]))
    images = [encode_png(one) for one in pixels]
    infer = message(bundle, pixels)
    return {
        "HTTP, one image": (partial(over_http, png_requests(images[:8], [str(BETA)]), 1, CONNECTIONS), 0),
        f"HTTP, form of {IMAGES} images": (partial(over_http, [form(images)], IMAGES, PARALLEL), 0.5),
        f"HTTP, JSON of {IMAGES} images": (partial(over_http, [json_body(images)], IMAGES, PARALLEL), 0.5),
        f"HTTP, binary tensor of {IMAGES} images": (
            partial(over_http, [binary_body(bundle, pixels)], IMAGES, PARALLEL),
            0.5,
        ),
        f"gRPC, binary tensor of {IMAGES} images": (partial(over_grpc, infer, IMAGES, PARALLEL), 0.7),
        f"gRPC stream, binary tensors of {IMAGES} images": (partial(over_stream, infer, IMAGES, PARALLEL), 0.7),
        "gRPC streams, binary tensors of one image": (
            partial(over_stream, message(bundle, pixels[:1]), 1, CONNECTIONS),
            0,
        ),
    }


class BareEngine:
    """The engine that the server chooses, without a server. Runs batches on all cores."""

    def __init__(self, bundle: Bundle) -> None:
        self._streams = min(2, available_cpus())
        options = EngineOptions(threads=available_cpus(), streams=self._streams, cache=default_cache_directory())
        self._engine = open_engine(bundle, options=options)
        self._pixels = np.resize(bundle.golden.pixels, (ENGINE_BATCH, *bundle.golden.pixels.shape[1:]))
        self._tokens = mix_rows(bundle.clean_token, bundle.robust_token, [BETA] * ENGINE_BATCH)

    def __enter__(self) -> BareEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def measure(self, seconds: float) -> Measurement:
        """Runs the engine for `seconds`."""

        def run(_: int) -> int:
            count = 0
            while not count or time.perf_counter() < end:
                self._engine.run(self._pixels, self._tokens)
                count += ENGINE_BATCH
            return count

        started, used_s = time.perf_counter(), time.process_time()
        end = started + seconds
        with ThreadPoolExecutor(self._streams) as threads:
            images = sum(threads.map(run, range(self._streams)))
        return Measurement(images / (time.perf_counter() - started), 1e6 * (time.process_time() - used_s) / images)


def run_way(way: Way, port: int, grpc_port: int, seconds: float) -> int:
    """Returns the images of a way. Runs in the process of the client."""
    return uvloop.run(way(port, grpc_port, seconds))


async def over_http(
    requests: list[bytes], images: int, connections: int, port: int, grpc_port: int, seconds: float
) -> int:
    """Sends HTTP requests of `images` images each."""
    load = await closed_loop(port, requests, connections, seconds)
    if load.failed:
        raise RuntimeError(f"{load.failed} requests failed")
    return images * load.responses


async def over_grpc(data: bytes, images: int, parallel: int, port: int, grpc_port: int, seconds: float) -> int:
    """Sends single messages of `images` images each."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/ModelInfer")
        started = time.perf_counter()

        async def client() -> int:
            count = 0
            while time.perf_counter() < started + seconds:
                await call(data)
                count += images
            return count

        counts = await asyncio.gather(*(client() for _ in range(parallel)))
        return sum(counts)


async def over_stream(data: bytes, images: int, streams: int, port: int, grpc_port: int, seconds: float) -> int:
    """Sends messages of `images` images each on several streams. The server answers a stream in order, one by one."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call: Any = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        started = time.perf_counter()

        async def messages() -> AsyncIterator[bytes]:
            while time.perf_counter() < started + seconds:
                yield data

        async def client() -> int:
            count = 0
            async for response in call(messages()):
                if pb.ModelStreamInferResponse.FromString(response).error_message:
                    raise RuntimeError("a message of a stream failed")
                count += images
            return count

        counts = await asyncio.gather(*(client() for _ in range(streams)))
        return sum(counts)


def message(bundle: Bundle, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Returns a gRPC request with the pixels, uint8 (B, H, W, 3), as a binary tensor."""
    infer = pb.ModelInferRequest(model_name=bundle.manifest.name)
    infer.inputs.add(name=PIXELS, datatype="UINT8", shape=pixels.shape)
    infer.outputs.add(name="probabilities")
    infer.parameters["beta"].double_param = BETA
    infer.raw_input_contents.append(pixels.tobytes())
    data: bytes = infer.SerializeToString()
    return data


def binary_body(bundle: Bundle, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Returns an HTTP request with the pixels, uint8 (B, H, W, 3), as a binary tensor."""
    data = pixels.tobytes()
    fields = {
        "parameters": {"beta": BETA, "binary_data_output": True},
        "inputs": [
            {
                "name": PIXELS,
                "datatype": "UINT8",
                "shape": list(pixels.shape),
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "outputs": [{"name": "probabilities"}],
    }
    text = json.dumps(fields).encode()
    path = f"/v2/models/{bundle.manifest.name}/infer"
    return post(path, text + data, "application/octet-stream", f"Inference-Header-Content-Length: {len(text)}\r\n")


def form(images: list[bytes]) -> bytes:
    """Returns a request with a form of encoded images."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = b"".join(itertools.chain.from_iterable((part, image, b"\r\n") for image in images)) + b"--x--\r\n"
    return post(f"/classify?beta={BETA}&top_k=1", body, "multipart/form-data; boundary=x")


def json_body(images: list[bytes]) -> bytes:
    """Returns a request with the encoded images in base64."""
    entries = [{"data": base64.b64encode(image).decode()} for image in images]
    return post(f"/classify?beta={BETA}&top_k=1", json.dumps({"images": entries}).encode(), "application/json")


def post(target: str, body: bytes, media_type: str, more_headers: str = "") -> bytes:
    """Returns a complete HTTP request. more_headers: lines with their ends."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n{more_headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    main()
