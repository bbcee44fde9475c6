"""Measures how much one client with images that are expensive to decode delays the requests of other clients.

The module generates the expensive images: files of 1 to 100 kB that decode to 25 million pixels, and a small image that
costs as much per byte. One client sends requests with expensive images of one kind at a time. The rate of these
requests is in bytes per second, because an attacker pays for bytes. The other clients send ordinary requests with small
PNG files or photographs. The benchmark measures the peak memory of the server too.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop
from PIL import Image

from benchmarks.load import NO_RESPONSE, NO_SUCCESS, Connection, TimedResponse, open_loop
from benchmarks.server_process import Server, run_tureen
from benchmarks.targets import format_figure, percentile, ratio, report_target
from benchmarks.workload import SMALL_BUNDLE, Workload, classify_requests
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import Manifest
from tureen.machine import available_cpus

BYTES_PER_S = 100_000  # of expensive requests, heads included
SMALL_RATE, PHOTOGRAPH_RATE = 40.0, 20.0  # requests/s, two open loops in parallel
STREAM_CONNECTIONS = 64  # at most; without a free connection a request is dropped
SMALL_SIDE = 32  # pixels, as in CIFAR-10
PHOTOGRAPH_SIZE = (1280, 960)
STREAM_LEAD_S = 2.0  # of expensive requests alone, in which the decoder processes start
SAMPLE_S = 0.25  # between two samples of memory
WITHOUT_IMAGE = "as many requests without an image"


@dataclass(frozen=True)
class ExpensiveStream:
    """The name of a kind of expensive image, and complete HTTP requests with images of this kind."""

    name: str
    requests: list[bytes]


@dataclass
class OrdinaryResponses:
    """Responses to ordinary requests, by kind of image: small images, and large photographs."""

    small: list[TimedResponse] = field(default_factory=list)
    photographs: list[TimedResponse] = field(default_factory=list)

    def add(self, more: OrdinaryResponses) -> None:
        """Adds the responses of another round."""
        self.small += more.small
        self.photographs += more.photographs

    def __str__(self) -> str:
        return f"small {_summary(self.small)}, photographs {_summary(self.photographs)}"


@dataclass
class OrdinaryRequests:
    """Complete HTTP requests with one image each, by kind of image: small images, and large photographs."""

    small: list[bytes]
    photographs: list[bytes]


def measure_expensive_images(workload: Workload) -> None:
    """Prints the p99 latency of ordinary requests beside expensive ones, as a ratio to the p99 latency without them.

    There is one ratio for each kind of expensive image. Then prints the number of ordinary requests without a response
    of status 200, and the peak memory of the server. Measurements with and without expensive requests alternate.
    """
    requests = OrdinaryRequests(
        classify_requests(noise_images(), media_type="image/png"), classify_requests(large_photographs())
    )
    kinds = expensive_streams(load_bundle(SMALL_BUNDLE).manifest)
    mixed = ExpensiveStream(
        "mixed", [r for group in itertools.zip_longest(*(k.requests for k in kinds)) for r in group if r]
    )
    streams_in_turns = (*kinds, mixed, requests_without_image())
    measured = {kind.name: (OrdinaryResponses(), OrdinaryResponses()) for kind in streams_in_turns}
    largest = 0
    # A separate process sends the expensive requests, so that they do not delay the ordinary ones in this process.
    streams = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    streams.submit(os.getpid).result()
    with run_tureen(SMALL_BUNDLE, *workload.flags) as server, streams:
        uvloop.run(send_ordinary(server, requests, workload.seconds))
        idle = peak_bytes(server)
        for turn in range(workload.rounds):
            for kind in streams_in_turns:
                alone = uvloop.run(send_ordinary(server, requests, workload.seconds, seed=turn))
                stream = streams.submit(send_stream, server.port, kind.requests, STREAM_LEAD_S + workload.seconds)
                beside, peak = uvloop.run(send_beside_stream(server, requests, workload.seconds, seed=turn))
                statuses = stream.result()
                largest = max(largest, peak)
                for total, responses in zip(measured[kind.name], (alone, beside), strict=True):
                    total.add(responses)
                counts = ", ".join(f"{count} {status or 'open'}" for status, count in sorted(statuses.items()))
                print(f"  {kind.name}\n    alone:  {alone}\n    beside: {beside}; the stream: {counts}", flush=True)
    for name, (alone, beside) in measured.items():
        for kind_of_image in ("small", "photographs"):
            before, after = getattr(alone, kind_of_image), getattr(beside, kind_of_image)
            note = f"of {len(after)} requests"
            slowdown = ratio(p99_ms(after), p99_ms(before))
            if name == WITHOUT_IMAGE:
                figure = format_figure(slowdown, ".3g")
                print(f"for comparison: p99 of {kind_of_image} beside {name} / alone {figure}, {note}")
                continue
            report_target(f"expensive: p99 of {kind_of_image} beside {name} / alone", "≤", 2, slowdown, note)
            missed = not_served(after) if after else math.nan
            report_target(f"expensive: {kind_of_image} not served beside {name}", "=", 0, missed, note)
    budget = memory_budget()
    note = (
        f"{largest / 2**20:.0f} MiB at most, idle {idle / 2**20:.0f} MiB, budget {budget / 2**20:.0f} MiB beyond idle"
    )
    report_target("expensive: peak memory beyond idle / budget", "≤", 1, (largest - idle) / budget, note)


def memory_budget() -> int:
    """Returns the bytes by which the memory of the server may exceed that of an idle server.

    The budget is the sum of the memory for images, processes, threads and bodies at the default settings, by
    docs/serving.md.
    """
    decoders = min(8, available_cpus())
    one_image = 46 * 25_000_000
    return 2**30 + one_image + (40 * (max(1, decoders // 2) + 1) + 30 * decoders + STREAM_CONNECTIONS) * 2**20


async def send_ordinary(
    server: Server, requests: OrdinaryRequests, seconds: float, *, seed: int = 0
) -> OrdinaryResponses:
    """Sends requests with small images and requests with photographs in parallel for `seconds`. Returns the responses.

    seed: of the random times of the requests.
    """
    small, photographs = await asyncio.gather(
        open_loop(server.port, requests.small, SMALL_RATE, seconds, seed=2 * seed),
        open_loop(server.port, requests.photographs, PHOTOGRAPH_RATE, seconds, seed=2 * seed + 1),
    )
    return OrdinaryResponses(small.responses, photographs.responses)


async def send_beside_stream(
    server: Server, requests: OrdinaryRequests, seconds: float, *, seed: int
) -> tuple[OrdinaryResponses, int]:
    """Waits STREAM_LEAD_S seconds, then sends ordinary requests for `seconds`.

    Meanwhile another process sends expensive requests. Returns the responses to the ordinary requests, and the peak
    memory of the server in bytes.
    """
    peak = 0

    async def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, await asyncio.to_thread(peak_bytes, server))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    await asyncio.sleep(STREAM_LEAD_S)
    responses = await send_ordinary(server, requests, seconds, seed=seed)
    sampling.cancel()
    return responses, peak


def send_stream(port: int, requests: Sequence[bytes], seconds: float) -> Counter[int]:
    """Sends the requests in turn for `seconds`, BYTES_PER_S bytes per second, each on a new connection.

    Skips a request while STREAM_CONNECTIONS connections are open. Returns the number of responses by status. The status
    0 counts the requests without a response.
    """
    statuses: Counter[int] = uvloop.run(_send_stream(port, requests, seconds))
    return statuses


async def _send_stream(port: int, requests: Sequence[bytes], seconds: float) -> Counter[int]:
    statuses: Counter[int] = Counter()
    free, tasks = asyncio.Semaphore(STREAM_CONNECTIONS), set()

    async def send(request: bytes) -> None:
        connection = None
        try:
            connection = await Connection.open(port)
            statuses[(await connection.request(request)).status] += 1
            connection.close()
        except (asyncio.CancelledError, OSError):
            if connection is not None:
                connection.abandon()
            statuses[NO_RESPONSE] += 1
        finally:
            free.release()

    started, sent = time.perf_counter(), 0
    for request in itertools.cycle(requests):
        await asyncio.sleep(max(0, sent / BYTES_PER_S - (time.perf_counter() - started)))
        if time.perf_counter() - started > seconds:
            break
        sent += len(request)
        if free.locked():
            continue
        await free.acquire()
        task = asyncio.create_task(send(request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks)
    return statuses


def peak_bytes(server: Server) -> int:
    """Returns the sum, over all processes of the server, of their peak resident memory in bytes.

    The peak of the whole server is at most this sum, because its processes may peak at different times.
    """
    peak = 0
    for process in server.processes():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # the process has ended
            continue
        peak += 1024 * next((int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM")), 0)
    return peak


def p99_ms(responses: Sequence[TimedResponse]) -> float:
    """Returns the p99 latency in ms of the responses with status 200; NaN if there are none."""
    return percentile_ms(responses, 99)


def percentile_ms(responses: Sequence[TimedResponse], percent: float) -> float:
    """Returns the percentile `percent` of the latencies in ms; NaN if there are none. percent: 0 to 100.

    Only responses with status 200 count. A latency begins at the planned time of the request.
    """
    return 1000 * percentile([r.latency_s for r in responses if r.response.status == 200], percent)


def not_served(responses: Sequence[TimedResponse]) -> int:
    """Returns the number of requests without a response of status 200."""
    return sum(timed.response.status != 200 for timed in responses)


def _summary(responses: Sequence[TimedResponse]) -> str:
    refused = not_served(responses)
    if refused == len(responses):
        return f"{NO_SUCCESS} ({refused} not served)"
    times = f"p50 {percentile_ms(responses, 50):.1f} ms, p99 {p99_ms(responses):.1f} ms"
    return f"{times} ({refused} not served)" if refused else times


def noise_images() -> list[bytes]:
    """Returns 50 PNG files of random pixels, SMALL_SIDE × SMALL_SIDE."""
    rng = np.random.default_rng(0)
    return [
        _encode(Image.fromarray(rng.integers(0, 256, (SMALL_SIDE, SMALL_SIDE, 3), np.uint8)), "PNG") for _ in range(50)
    ]


def large_photographs() -> list[bytes]:
    """Returns five JPEG files of 1.2 million pixels, each with about as many bytes as a camera's file of this size."""
    rng = np.random.default_rng(0)
    grain = (rng.integers(0, 256, (PHOTOGRAPH_SIZE[1] // 4, PHOTOGRAPH_SIZE[0] // 4, 3), np.uint8) for _ in range(5))
    return [_encode(Image.fromarray(g).resize(PHOTOGRAPH_SIZE), "JPEG", quality=75) for g in grain]


def expensive_streams(manifest: Manifest) -> list[ExpensiveStream]:
    """Returns one series of requests for each kind of expensive image.

    Some requests contain several images: in a form, in JSON or in the Open Inference Protocol. manifest: of the served
    model; its name is in the path of a request of that protocol.
    """
    white = Image.new("RGB", (5000, 5000), "white")
    webp = _encode(white, "WEBP", lossless=True)
    clear = _encode(Image.new("RGBA", (5000, 5000), (1, 2, 3, 4)), "WEBP", lossless=True)
    narrow = _encode(Image.new("RGB", (1, 25_000_000)), "PNG")
    jpeg = jpeg_of_scans(white, 32)
    small = _encode(Image.new("RGB", (560, 560)), "WEBP", lossless=True)
    return [
        ExpensiveStream("WebP of 25 megapixels", classify_requests([webp], media_type="image/webp")),
        ExpensiveStream("transparent WebP", classify_requests([clear], media_type="image/webp")),
        ExpensiveStream("PNG of 1 × 25,000,000", classify_requests([narrow], media_type="image/png")),
        ExpensiveStream("JPEG of 32 scans", classify_requests([jpeg])),
        ExpensiveStream("forms of 64 WebP", [multipart_request([webp] * 64)]),
        ExpensiveStream("forms of 5 WebP", [multipart_request([webp] * 5)]),
        ExpensiveStream("JSON of 5 WebP", [json_request([webp] * 5)]),
        ExpensiveStream("/v2 with 5 WebP", [v2_request([webp] * 5, manifest.name)]),
        ExpensiveStream("WebP of 560 × 560", classify_requests([small], media_type="image/webp")),
    ]


def requests_without_image() -> ExpensiveStream:
    """Returns requests without a decodable image. They show the cost of requests and connections alone.

    Each request is about as large as one with the smallest expensive image. So both kinds have the same number of
    requests per second.
    """
    return ExpensiveStream(WITHOUT_IMAGE, classify_requests([b"\xff\xd8\xff" + bytes(120)], media_type="image/webp"))


def jpeg_of_scans(image: Image.Image, scans: int) -> bytes:
    """Returns the image as a progressive JPEG file. Repeats the last scan until the file has `scans` scans."""
    data = _encode(image, "JPEG", progressive=True, quality=5)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def multipart_request(images: Sequence[bytes]) -> bytes:
    """Returns a whole POST /classify request, head and body. The body is a multipart form with the images."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    return _post(
        "/classify", "multipart/form-data; boundary=x", b"".join(head + i + b"\r\n" for i in images) + b"--x--"
    )


def json_request(images: Sequence[bytes]) -> bytes:
    """Returns a whole POST /classify request, head and body. The body is JSON with the images as base64."""
    encoded = [{"data": base64.b64encode(image).decode()} for image in images]
    return _post("/classify", "application/json", json.dumps({"images": encoded}).encode())


def v2_request(images: Sequence[bytes], model: str) -> bytes:
    """Returns a whole inference request of the Open Inference Protocol over HTTP, head and body.

    The body is JSON with the images as base64. model: name of the model.
    """
    data = [base64.b64encode(image).decode() for image in images]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}]
    return _post(f"/v2/models/{model}/infer", "application/json", json.dumps({"inputs": inputs}).encode())


def _post(path: str, media_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
