"""Measures whether the server leaks memory, descriptors or threads during very many requests.

A tenth of the requests is malformed. For another tenth, the client closes the connection before the response. The model
is small, so that its memory hides no leak of the server. The same load then runs on a server that leaks on purpose, to
prove that the measurement detects a leak.
"""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import uvloop
from PIL import Image

from benchmarks.load import Connection
from benchmarks.server_process import LEAKING_SERVER, TUREEN_SERVER, ResourceUsage, Server, run_tureen
from benchmarks.targets import median, ratio, report_target
from benchmarks.workload import SMALL_BUNDLE, Workload, classify_requests
from tureen.bundle.bundle import load_bundle

CONNECTIONS = 16
WARM_UP = 0.05  # of the requests
SAMPLES = 200  # of memory, over the whole run
GROWTH_SAMPLES = 10  # samples at either end, of which the medians are compared
LARGEST_GROWTH = 0.01
SETTLE_S = 3  # for the server to notice that every connection is closed


@dataclass
class SoakResult:
    """The number of requests by outcome, such as "valid 200" or "abandoned", and samples of the server's memory."""

    counts: Counter[str] = field(default_factory=Counter)  # number of requests by outcome
    sent: int = 0  # number of requests sent
    rss: list[tuple[int, int]] = field(default_factory=list)  # (requests sent, bytes)

    def samples_after_warm_up(self) -> list[tuple[int, int]]:
        """Returns the samples of memory after the warm-up: pairs of requests sent so far and resident bytes."""
        return [(sent, rss) for sent, rss in self.rss if sent >= WARM_UP * self.sent]

    @property
    def growth(self) -> float:
        """Relative growth of memory from the end of the warm-up to the end of the run; NaN if no request succeeded."""
        if not self.counts["valid 200"]:
            return math.nan
        rss = [bytes_held for _, bytes_held in self.samples_after_warm_up()]
        return ratio(median(rss[-GROWTH_SAMPLES:]), median(rss[:GROWTH_SAMPLES])) - 1

    def curve(self) -> str:
        """Returns the memory at each tenth of the run as text. With a leak, the memory grows until the run ends."""
        tenths = self.rss[:: max(1, len(self.rss) // 10)]
        return "MiB by requests: " + ", ".join(f"{rss / 2**20:.1f} at {sent:,}" for sent, rss in tenths)

    @property
    def bytes_per_request(self) -> float:
        """Growth of memory in bytes per request: the slope of a linear fit of the samples after the warm-up."""
        sent, rss = np.array(self.samples_after_warm_up(), dtype=float).T
        return float(np.polyfit(sent, rss, 1)[0])


def run_soak(workload: Workload) -> None:
    """Prints the growth of memory, descriptors and threads after `workload.requests` requests.

    Then prints how much the memory of a server with a leak grows.
    """
    result, before, after = run_requests(workload.requests, TUREEN_SERVER)
    print(f"  {dict(result.counts.most_common())}\n  {result.curve()}", flush=True)
    mib = after.rss_bytes / 2**20
    note = f"{result.bytes_per_request:+.1f} bytes per request, {result.sent:,} requests, {mib:.0f} MiB"
    report_target("soak: memory growth after warm-up", "<", LARGEST_GROWTH, result.growth, note)
    report_target("soak: additional file descriptors", "≤", 0, after.descriptors - before.descriptors)
    report_target("soak: additional threads", "≤", 0, after.threads - before.threads)
    report_target(
        "soak: responses with status 500",
        "=",
        0,
        sum(n for outcome, n in result.counts.items() if outcome.endswith(" 500")),
    )
    leaking, *_ = run_requests(workload.requests, LEAKING_SERVER)
    print(f"  {leaking.curve()}", flush=True)
    note = f"{leaking.bytes_per_request:+.1f} bytes per request"
    report_target("soak: memory growth of a server that leaks 1 KiB", "≥", LARGEST_GROWTH, leaking.growth, note)


def run_requests(requests: int, command: tuple[str, ...]) -> tuple[SoakResult, ResourceUsage, ResourceUsage]:
    """Runs a server by `command`, and sends `requests` requests to it.

    Returns the result, and the resources that the idle server uses after the warm-up and after the last request.
    """
    result = SoakResult()
    step = max(1, requests // SAMPLES)
    with run_tureen(SMALL_BUNDLE, command=command) as server:
        uvloop.run(send_mixed_requests(server, result, until=int(WARM_UP * requests), step=step))
        before = server.usage()
        uvloop.run(send_mixed_requests(server, result, until=requests, step=step))
        return result, before, server.usage()


async def send_mixed_requests(server: Server, result: SoakResult, *, until: int, step: int) -> None:
    """Sends random requests over CONNECTIONS connections until `result.sent` is `until`. Adds the outcomes to `result`.

    Records the memory of the server every `step` requests. The seed is fixed, so every run sends the same requests.
    """
    valid, malformed = valid_requests(), malformed_requests()
    draw = random.Random(result.sent)

    async def client() -> None:
        connection = await Connection.open(server.port)
        while result.sent < until:
            result.sent += 1
            if result.sent % step == 0:
                result.rss.append((result.sent, server.usage().rss_bytes))
            kind = draw.random()
            if not connection.is_open:
                connection = await Connection.open(server.port)
            if kind < 0.1:
                await abandon_request(connection, draw.choice(valid), draw)
                result.counts["abandoned"] += 1
                continue
            label, choices = ("malformed", malformed) if kind < 0.2 else ("valid", valid)
            result.counts[f"{label} {(await connection.request(draw.choice(choices))).status}"] += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    await asyncio.sleep(SETTLE_S)


async def abandon_request(connection: Connection, request: bytes, draw: random.Random) -> None:
    """Sends a request or only its beginning, and closes the connection within 10 ms, without reading a response."""
    whole = draw.random() < 0.5
    connection.transport.write(request if whole else request[: draw.randrange(1, len(request))])
    await asyncio.sleep(draw.random() * 0.01)
    connection.close()


def valid_requests() -> list[bytes]:
    """Returns requests with the images of the example bundle: each image in every supported format, at three β."""
    images = [
        (encode_image(pixels, kind), f"image/{kind}") for pixels in golden_pixels() for kind in ("png", "jpeg", "webp")
    ]
    return [
        request
        for image, media_type in images
        for request in classify_requests([image], (0, 0.3, 1), media_type=media_type)
    ]


def malformed_requests() -> list[bytes]:
    """Returns requests with truncated, corrupted, empty or unsupported images. The last one has a wrong media type."""
    draw = np.random.default_rng(0)
    images: list[bytes] = [b"", b"\xff\xd8\xff", b"GIF89a" + bytes(100), b"%PDF-1.7", bytes(1000)]
    for pixels in golden_pixels():
        for kind in ("png", "jpeg", "webp"):
            image = encode_image(pixels, kind)
            images += [image[: len(image) * part // 8] for part in range(1, 8)]
            for _ in range(8):
                changed = np.frombuffer(image, np.uint8).copy()
                changed[draw.integers(12, len(changed), 20)] = draw.integers(0, 256, 20)
                images.append(changed.tobytes())
    return [*classify_requests(images), *classify_requests([images[5]], media_type="text/plain")]


def golden_pixels() -> list[np.ndarray]:
    """Returns the images in golden.npz of the example bundle, each uint8 (H, W, 3)."""
    return list(load_bundle(SMALL_BUNDLE).golden.pixels)


def encode_image(pixels: np.ndarray, kind: str) -> bytes:
    """Returns the pixels, uint8 (H, W, 3), as an image file. kind: "png", "jpeg" or "webp"."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
