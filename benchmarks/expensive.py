"""What ordinary requests suffer beside images that cost most to decode for their bytes, and what memory those take.

The worst images are drawn here: one kilobyte, or a hundred, that decode to 25 million pixels, and a smaller one that
would cost as much for its bytes. The stream has a rate in bytes a second, which is what an attacker pays for.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
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

from benchmarks.load import LOST, Connection, Outcome, open_loop
from benchmarks.server_process import Server, serving
from benchmarks.subject import SMALL_BUNDLE, Subject, classify_requests
from benchmarks.targets import line
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import Manifest
from tureen.machine import available_cpus

BYTES_PER_S = 100_000  # of worst images, heads of their requests included
SMALL_RATE, PHOTOGRAPH_RATE = 40.0, 20.0  # requests/s, open loop, both at a time
MOST_WORST = 64  # connections of the stream at a time; what finds none free is dropped, as by a slow attacker
SIDE = 32  # of a small image, as those of CIFAR-10
PHOTOGRAPH = (1280, 960)
START_S = 2.0  # of the stream before the ordinary requests: the processes that decode are started by then
LOOK_S = 0.25  # between two looks at the server's memory


@dataclass(frozen=True)
class Worst:
    """One kind of stream: whole HTTP requests."""

    name: str
    requests: list[bytes]


@dataclass
class Ordinary:
    """What came of the requests for small images and for photographs, of all rounds."""

    small: list[Outcome] = field(default_factory=list)
    photographs: list[Outcome] = field(default_factory=list)

    def add(self, more: Ordinary) -> None:
        """Those of another round."""
        self.small += more.small
        self.photographs += more.photographs

    def __str__(self) -> str:
        return f"small {_shown(self.small)}, photographs {_shown(self.photographs)}"


@dataclass
class Requests:
    """HTTP requests of one image each."""

    small: list[bytes]
    photographs: list[bytes]


def expensive(subject: Subject) -> None:
    """p99 of ordinary requests with each stream of worst images and without, in turns; refusals; peak memory."""
    requests = Requests(
        classify_requests(small_images(), media_type="image/png"), classify_requests(drawn_photographs())
    )
    kinds = worst_kinds(load_bundle(SMALL_BUNDLE).manifest)
    mixed = Worst("mixed", [r for group in itertools.zip_longest(*(k.requests for k in kinds)) for r in group if r])
    measured = {kind.name: (Ordinary(), Ordinary()) for kind in (*kinds, mixed)}
    largest = 0
    # A process for the stream, so that its own work delays no request that is to be sent.
    streams = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    streams.submit(os.getpid).result()
    with serving(SMALL_BUNDLE, *subject.flags) as server, streams:
        uvloop.run(ordinary(server, requests, subject.seconds))
        idle = peak_bytes(server)
        for turn in range(subject.rounds):
            for kind in (*kinds, mixed):
                alone = uvloop.run(ordinary(server, requests, subject.seconds, seed=turn))
                stream = streams.submit(send_stream, server.port, kind.requests, START_S + subject.seconds)
                beside, peak = uvloop.run(beside_stream(server, requests, subject.seconds, seed=turn))
                answers = stream.result()
                largest = max(largest, peak)
                for total, outcomes in zip(measured[kind.name], (alone, beside), strict=True):
                    total.add(outcomes)
                shown = ", ".join(f"{count} {status or 'open'}" for status, count in sorted(answers.items()))
                print(f"  {kind.name}\n    alone:  {alone}\n    beside: {beside}; the stream: {shown}", flush=True)
    for name, (alone, beside) in measured.items():
        for what in ("small", "photographs"):
            before, after = getattr(alone, what), getattr(beside, what)
            note = f"of {len(after)} requests"
            line(f"expensive: p99 of {what} beside {name} / alone", "≤", 2, p99_ms(after) / p99_ms(before), note)
            line(f"expensive: {what} not served beside {name}", "=", 0, not_served(after), note)
    budget = memory_budget()
    note = f"{largest / 2**20:.0f} MiB at most, idle {idle / 2**20:.0f} MiB, budget {budget / 2**20:.0f} MiB beyond it"
    line("expensive: peak memory beyond idle / budget", "≤", 1, (largest - idle) / budget, note)


def memory_budget() -> int:
    """As docs/serving.md states it, at the defaults: images, processes, threads, and the bodies."""
    decoders = min(8, available_cpus())
    one_image = 46 * 25_000_000
    return 2**30 + one_image + (40 * (max(1, decoders // 2) + 1) + 30 * decoders + MOST_WORST) * 2**20


async def ordinary(server: Server, requests: Requests, seconds: float, *, seed: int = 0) -> Ordinary:
    """Small images and photographs at a time, with nothing beside them."""
    small, photographs = await asyncio.gather(
        open_loop(server.port, requests.small, SMALL_RATE, seconds, seed=2 * seed),
        open_loop(server.port, requests.photographs, PHOTOGRAPH_RATE, seconds, seed=2 * seed + 1),
    )
    return Ordinary(small.outcomes, photographs.outcomes)


async def beside_stream(server: Server, requests: Requests, seconds: float, *, seed: int) -> tuple[Ordinary, int]:
    """The ordinary requests once the stream has begun, and the most memory that the server held."""
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, await asyncio.to_thread(peak_bytes, server))
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    await asyncio.sleep(START_S)
    outcomes = await ordinary(server, requests, seconds, seed=seed)
    looking.cancel()
    return outcomes, peak


def send_stream(port: int, requests: Sequence[bytes], seconds: float) -> Counter[int]:
    """BYTES_PER_S of the requests in turns, each on a connection of its own; the answers by status, 0 for none yet."""
    answers: Counter[int] = uvloop.run(_send_stream(port, requests, seconds))
    return answers


async def _send_stream(port: int, requests: Sequence[bytes], seconds: float) -> Counter[int]:
    answers: Counter[int] = Counter()
    free, tasks = asyncio.Semaphore(MOST_WORST), set()

    async def send(request: bytes) -> None:
        connection = None
        try:
            connection = await Connection.open(port)
            answers[(await connection.answer(request)).status] += 1
            connection.close()
        except (asyncio.CancelledError, OSError):
            if connection is not None:
                connection.forget()
            answers[LOST] += 1
        finally:
            free.release()

    began, sent = time.perf_counter(), 0
    for request in itertools.cycle(requests):
        await asyncio.sleep(max(0, sent / BYTES_PER_S - (time.perf_counter() - began)))
        if time.perf_counter() - began > seconds:
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
    return answers


def peak_bytes(server: Server) -> int:
    """The most that each process of the server ever held, added up: no less than they ever held together."""
    peak = 0
    for process in server.processes():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has ended
            continue
        peak += 1024 * next((int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM")), 0)
    return peak


def p99_ms(outcomes: Sequence[Outcome]) -> float:
    """Of the requests answered with 200, from their intended times."""
    return percentile_ms(outcomes, 99)


def percentile_ms(outcomes: Sequence[Outcome], share: float) -> float:
    """The latency that so many in a hundred of the answers with 200 stay within."""
    return 1000 * float(np.percentile([o.latency_s for o in outcomes if o.answer.status == 200], share))


def not_served(outcomes: Sequence[Outcome]) -> int:
    """How many requests were answered with anything but 200."""
    return sum(outcome.answer.status != 200 for outcome in outcomes)


def _shown(outcomes: Sequence[Outcome]) -> str:
    refused = not_served(outcomes)
    times = f"p50 {percentile_ms(outcomes, 50):.1f} ms, p99 {p99_ms(outcomes):.1f} ms"
    return f"{times} ({refused} not served)" if refused else times


def small_images() -> list[bytes]:
    """Small images of noise."""
    rng = np.random.default_rng(0)
    return [_encoded(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)), "PNG") for _ in range(50)]


def drawn_photographs() -> list[bytes]:
    """JPEGs of over a million pixels, with as many bytes as a camera's."""
    rng = np.random.default_rng(0)
    grain = (rng.integers(0, 256, (PHOTOGRAPH[1] // 4, PHOTOGRAPH[0] // 4, 3), np.uint8) for _ in range(5))
    return [_encoded(Image.fromarray(g).resize(PHOTOGRAPH), "JPEG", quality=75) for g in grain]


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
