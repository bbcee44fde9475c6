"""What cheap requests suffer beside the images that cost most to decode for their bytes, and what memory those take.

The worst images are drawn here: one kilobyte, or a hundred, that decode to 25 million pixels, and a smaller one that
would cost as much for its bytes. The stream has a rate in bytes a second, which is what an attacker pays for.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import uvloop
from PIL import Image

from benchmarks.asked import line
from benchmarks.load import Connection, OpenLoad, open_loop
from benchmarks.server_process import Server, serving
from benchmarks.subject import SMALL_BUNDLE, Subject, classify_requests
from tureen.bundle import load_bundle
from tureen.machine import available_cpus
from tureen.manifest import Manifest

BYTES_PER_S = 100_000  # of worst images, heads of their requests included
CHEAP_RATE = 20.0  # requests/s of small images, open loop
MOST_WORST = 64  # connections of the stream at a time; what finds none free is dropped, as by a slow attacker
SIDE = 32  # of a cheap image, as those of CIFAR-10
LOOK_S = 0.02  # between two looks at the server's memory


@dataclass(frozen=True)
class Worst:
    """One kind of stream: whole HTTP requests."""

    name: str
    requests: list[bytes]


def expensive(subject: Subject) -> None:
    """p99 of cheap requests with each stream of worst images and without, in turns; refusals; peak memory."""
    requests = classify_requests(cheap_images(), media_type="image/png")
    kinds = worst_kinds(load_bundle(SMALL_BUNDLE).manifest)
    mixed = Worst("mixed", [r for group in itertools.zip_longest(*(k.requests for k in kinds)) for r in group if r])
    ratios: dict[str, list[float]] = {}
    refused: dict[str, int] = {}
    with serving(SMALL_BUNDLE, *subject.flags) as server:
        uvloop.run(open_loop(server.port, requests, CHEAP_RATE, 2))
        idle = server.cost().rss_bytes
        with peak_of(server) as peak:
            for turn in range(subject.rounds):
                for kind in (*kinds, mixed):
                    alone = uvloop.run(open_loop(server.port, requests, CHEAP_RATE, subject.seconds, seed=turn))
                    beside, answers = uvloop.run(beside_stream(server.port, requests, kind, subject.seconds, turn))
                    ratios.setdefault(kind.name, []).append(p99_ms(beside) / p99_ms(alone))
                    refused[kind.name] = refused.get(kind.name, 0) + len(requests_not_served(beside))
                    print(
                        f"  {kind.name:<34} p99 alone {p99_ms(alone):6.1f} ms, beside {p99_ms(beside):6.1f} ms; "
                        f"the stream: {answers}; cheap not served: {len(requests_not_served(beside))}",
                        flush=True,
                    )
    for name, values in ratios.items():
        line(f"expensive: p99 of cheap beside {name} / alone", "≤", 2, median(values))
    for name, count in refused.items():
        line(f"expensive: cheap requests refused beside {name}", "=", 0, count)
    budget = memory_budget()
    note = f"{peak.largest / 2**20:.0f} MiB at most, idle {idle / 2**20:.0f} MiB, budget {budget / 2**20:.0f} MiB"
    line("expensive: peak memory beyond idle / budget", "≤", 1, (peak.largest - idle) / budget, note)


def memory_budget() -> int:
    """As docs/serving.md states it, at the defaults: expensive images, processes, threads, and the bodies."""
    decoders = min(8, available_cpus())
    return 2**30 + decoders * (40 + 30) * 2**20 + MOST_WORST * 2**20


async def beside_stream(
    port: int, requests: Sequence[bytes], kind: Worst, seconds: float, seed: int
) -> tuple[OpenLoad, dict[int, int]]:
    """The cheap load while the stream comes; and how often the stream was answered with each status."""
    answers: dict[int, int] = {}
    stream = asyncio.create_task(send_stream(port, kind.requests, answers))
    await asyncio.sleep(1)  # the processes that decode are started by now
    load = await open_loop(port, requests, CHEAP_RATE, seconds, seed=seed)
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)
    return load, dict(sorted(answers.items()))


async def send_stream(port: int, requests: Sequence[bytes], answers: dict[int, int]) -> None:
    """BYTES_PER_S of the requests in turns, each on a connection of its own, until cancelled."""
    began, sent = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        sending = asyncio.Semaphore(MOST_WORST)

        async def send(request: bytes) -> None:
            connection = None
            try:
                connection = await Connection.open(port)
                status = (await connection.answer(request)).status
                connection.close()
                answers[status] = answers.get(status, 0) + 1
            except asyncio.CancelledError:
                if connection is not None:
                    connection.forget()
                raise
            finally:
                sending.release()

        for request in itertools.cycle(requests):
            await asyncio.sleep(max(0, sent / BYTES_PER_S - (time.perf_counter() - began)))
            sent += len(request)
            await sending.acquire()
            group.create_task(send(request))


@dataclass
class Peak:
    largest: int = 0


@contextmanager
def peak_of(server: Server) -> Iterator[Peak]:
    """The most memory that the server and its processes held, looked at all the while."""
    peak, is_over = Peak(), threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            peak.largest = max(peak.largest, server.cost().rss_bytes)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def p99_ms(load: OpenLoad) -> float:
    """Of the requests answered with 200, from their intended times."""
    return 1000 * float(np.percentile([outcome.latency_s for outcome in load.of_status(200)], 99))


def requests_not_served(load: OpenLoad) -> list[int]:
    """The statuses of the others."""
    return [outcome.answer.status for outcome in load.outcomes if outcome.answer.status != 200]


def cheap_images() -> list[bytes]:
    """Small images of noise."""
    rng = np.random.default_rng(0)
    return [_encoded(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)), "PNG") for _ in range(50)]


def worst_kinds(manifest: Manifest) -> list[Worst]:
    """Each image alone; several in a form, in JSON, and under /v2."""
    white = Image.new("RGB", (5000, 5000), "white")
    webp = _encoded(white, "WEBP", lossless=True)
    clear = _encoded(Image.new("RGBA", (5000, 5000), (1, 2, 3, 4)), "WEBP", lossless=True)
    narrow = _encoded(Image.new("RGB", (1, 25_000_000)), "PNG")
    jpeg = many_scans(white, 32)
    small = _encoded(Image.new("RGB", (560, 560)), "WEBP", lossless=True)
    return [
        Worst("WebP of 25 megapixels", classify_requests([webp], media_type="image/webp")),
        Worst("transparent WebP", classify_requests([clear], media_type="image/webp")),
        Worst("PNG of 1 × 25,000,000", classify_requests([narrow], media_type="image/png")),
        Worst("JPEG of 32 scans", classify_requests([jpeg])),
        Worst("forms of 64 WebP", [form([webp] * 64)]),
        Worst("forms of 5 WebP", [form([webp] * 5)]),
        Worst("JSON of 5 WebP", [as_json([webp] * 5)]),
        Worst("/v2 with 5 WebP", [as_v2([webp] * 5, manifest.name)]),
        Worst("WebP of 560 × 560", classify_requests([small], media_type="image/webp")),
    ]


def many_scans(image: Image.Image, scans: int) -> bytes:
    """A progressive JPEG, its last scan repeated until there are so many."""
    data = _encoded(image, "JPEG", progressive=True, quality=5)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def form(images: Sequence[bytes]) -> bytes:
    """A multipart form of the images."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    return _post(
        "/classify", "multipart/form-data; boundary=x", b"".join(head + i + b"\r\n" for i in images) + b"--x--"
    )


def as_json(images: Sequence[bytes]) -> bytes:
    """The images in JSON, in base64."""
    listed = [{"data": base64.b64encode(image).decode()} for image in images]
    return _post("/classify", "application/json", json.dumps({"images": listed}).encode())


def as_v2(images: Sequence[bytes], model: str) -> bytes:
    """The images in a request of the Open Inference Protocol, in JSON."""
    data = [base64.b64encode(image).decode() for image in images]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}]
    return _post(f"/v2/models/{model}/infer", "application/json", json.dumps({"inputs": inputs}).encode())


def _post(path: str, media_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
