"""Very many requests, a tenth of them malformed and a tenth given up midway: whether the server keeps anything of them.

On a small model, since it is the server's own memory that is looked for. The same load then meets a server that leaks
on purpose, which has to be found out: a test that cannot fail shows nothing.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import uvloop
from PIL import Image

from benchmarks.load import Connection
from benchmarks.server_process import LEAKING, TUREEN, Cost, Server, serving
from benchmarks.subject import SMALL_BUNDLE, Subject, classify_requests
from benchmarks.targets import line
from tureen.bundle.bundle import load_bundle

CONNECTIONS = 16
WARM_UP = 0.05  # of the requests
SAMPLES = 200  # of the server's memory, over the whole run
SETTLED = 10  # samples at either end whose median counts
LARGEST_GROWTH = 0.01
AFTERWARDS_S = 3  # for the server to see that every connection has ended


@dataclass
class Soak:
    """What came of it."""

    answers: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    rss: list[tuple[int, int]] = field(default_factory=list)  # after how many requests, bytes

    def settled(self) -> list[tuple[int, int]]:
        """The samples after the warm-up."""
        return [(sent, rss) for sent, rss in self.rss if sent >= WARM_UP * self.sent]

    @property
    def growth(self) -> float:
        """Share by which memory grew from the end of the warm-up to the end of the run."""
        rss = [bytes_held for _, bytes_held in self.settled()]
        return median(rss[-SETTLED:]) / median(rss[:SETTLED]) - 1

    def curve(self) -> str:
        """Memory at each tenth of the run: a cache that fills levels off, a leak does not."""
        tenths = self.rss[:: max(1, len(self.rss) // 10)]
        return "MiB by requests: " + ", ".join(f"{rss / 2**20:.1f} at {sent:,}" for sent, rss in tenths)

    @property
    def bytes_per_request(self) -> float:
        """Slope of a straight line through the samples after the warm-up."""
        sent, rss = np.array(self.settled(), dtype=float).T
        return float(np.polyfit(sent, rss, 1)[0])


def soak(subject: Subject) -> None:
    """Memory, descriptors and threads after `subject.requests` requests; and the same of a server that leaks."""
    sound, before, after = run(subject.requests, TUREEN)
    print(f"  {dict(sound.answers.most_common())}\n  {sound.curve()}", flush=True)
    note = f"{sound.bytes_per_request:+.1f} bytes a request, {sound.sent:,} requests, {after.rss_bytes / 2**20:.0f} MiB"
    line("soak: memory growth after warm-up", "<", LARGEST_GROWTH, sound.growth, note)
    line("soak: more file descriptors", "≤", 0, after.descriptors - before.descriptors)
    line("soak: more threads", "≤", 0, after.threads - before.threads)
    line("soak: answers with status 500", "=", 0, sum(n for what, n in sound.answers.items() if what.endswith(" 500")))
    leaking, *_ = run(subject.requests, LEAKING)
    print(f"  {leaking.curve()}", flush=True)
    note = f"{leaking.bytes_per_request:+.1f} bytes a request"
    line("soak: memory growth of a server that leaks 1 KiB", "≥", LARGEST_GROWTH, leaking.growth, note)


def run(requests: int, command: tuple[str, ...]) -> tuple[Soak, Cost, Cost]:
    """What came of the requests, and what the server held after the warm-up and at the end, with no connection open."""
    result = Soak()
    step = max(1, requests // SAMPLES)
    with serving(SMALL_BUNDLE, command=command) as server:
        uvloop.run(send(server, result, until=int(WARM_UP * requests), step=step))
        before = server.cost()
        uvloop.run(send(server, result, until=requests, step=step))
        return result, before, server.cost()


async def send(server: Server, result: Soak, *, until: int, step: int) -> None:
    """Requests over several connections, until so many are sent; their order is the same each time."""
    good, bad = sound_requests(), malformed_requests()
    draw = random.Random(result.sent)

    async def client() -> None:
        connection = await Connection.open(server.port)
        while result.sent < until:
            result.sent += 1
            if result.sent % step == 0:
                result.rss.append((result.sent, server.cost().rss_bytes))
            kind = draw.random()
            if not connection.is_open:
                connection = await Connection.open(server.port)
            if kind < 0.1:
                await give_up(connection, draw.choice(good), draw)
                result.answers["given up"] += 1
                continue
            what, among = ("malformed", bad) if kind < 0.2 else ("sound", good)
            result.answers[f"{what} {(await connection.answer(draw.choice(among))).status}"] += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    await asyncio.sleep(AFTERWARDS_S)


async def give_up(connection: Connection, request: bytes, draw: random.Random) -> None:
    """Send some of a request or all of it, and end the connection without waiting for the answer."""
    whole = draw.random() < 0.5
    connection.transport.write(request if whole else request[: draw.randrange(1, len(request))])
    await asyncio.sleep(draw.random() * 0.01)
    connection.close()


def sound_requests() -> list[bytes]:
    """The model's golden pictures in each type of image that is read, at a few β."""
    images = [(encoded(pixels, kind), f"image/{kind}") for pixels in golden() for kind in ("png", "jpeg", "webp")]
    return [
        request
        for image, media_type in images
        for request in classify_requests([image], (0, 0.3, 1), media_type=media_type)
    ]


def malformed_requests() -> list[bytes]:
    """The same cut short, with bytes changed, of other types, empty, or declared as something else."""
    draw = np.random.default_rng(0)
    images: list[bytes] = [b"", b"\xff\xd8\xff", b"GIF89a" + bytes(100), b"%PDF-1.7", bytes(1000)]
    for pixels in golden():
        for kind in ("png", "jpeg", "webp"):
            image = encoded(pixels, kind)
            images += [image[: len(image) * part // 8] for part in range(1, 8)]
            for _ in range(8):
                changed = np.frombuffer(image, np.uint8).copy()
                changed[draw.integers(12, len(changed), 20)] = draw.integers(0, 256, 20)
                images.append(changed.tobytes())
    return [*classify_requests(images), *classify_requests([images[5]], media_type="text/plain")]


def golden() -> list[np.ndarray]:
    return list(load_bundle(SMALL_BUNDLE).golden.pixels)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """The pixels, uint8 (H, W, 3), as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
