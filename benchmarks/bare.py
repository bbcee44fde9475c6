"""What decoding and the engine cost without a server around them, and the limit that follows (DESIGN.md, Measuring)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from benchmarks.subject import Subject
from tureen.engines.base import Engine
from tureen.machine import available_cpus
from tureen.preprocess import pixels_from_bytes
from tureen.tokens import mix_rows

BATCHES = (1, 4, 8, 16, 32)
TURNS = 8  # of the engine, in each round


@dataclass(frozen=True)
class Cost:
    """Core-seconds for one image, and what one image alone takes."""

    decode_s: float  # mean over the images, one thread, the other cores idle
    busy_decode_s: float  # the same while every core decodes
    engine_s: float  # cores × seconds for an image, at the best batch
    best_batch: int
    alone_s: float  # decoding and inference at batch 1, one after the other: median over the images

    @property
    def limit(self) -> float:
        """Images a second that the machine's cores can classify."""
        return available_cpus() / (self.decode_s + self.engine_s)


class Bare:
    """Decoder and engine of the server in this process, measured round by round."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._engine: Engine = subject.open_engine()
        self._decode: list[list[float]] = []  # round by round, CPU seconds for each image
        self._busy_decode: list[float] = []
        self._runs: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        spec = subject.bundle.manifest.preprocess
        self._pixels = np.stack([pixels_from_bytes(image, spec) for image in subject.images[: max(BATCHES)]])

    def measure(self) -> None:
        """One round, all cores to itself: every image decoded, the engine at each batch."""
        images = self._subject.images
        self._decode.append([self._decode_s(image) for image in images])
        with ThreadPoolExecutor(available_cpus()) as pool:
            self._busy_decode.append(mean(pool.map(self._decode_s, images)))
        for batch, seconds in self._runs.items():
            for _ in range(TURNS):
                seconds.append(self._run_s(batch))

    @property
    def cost(self) -> Cost:
        """Medians of the rounds so far."""
        each = np.median(np.array(self._decode), axis=0)
        runs = {batch: median(seconds) for batch, seconds in self._runs.items()}
        best = min(runs, key=lambda batch: runs[batch] / batch)
        return Cost(
            decode_s=float(each.mean()),
            busy_decode_s=median(self._busy_decode),
            engine_s=available_cpus() * runs[best] / best,
            best_batch=best,
            alone_s=float(np.median(each)) + runs[1],
        )

    def close(self) -> None:
        self._engine.close()

    def _decode_s(self, image: bytes) -> float:
        # The thread's own CPU time: what others do on this machine counts for nothing.
        started = time.thread_time()
        pixels_from_bytes(image, self._subject.bundle.manifest.preprocess)
        return time.thread_time() - started

    def _run_s(self, batch: int) -> float:
        bundle = self._subject.bundle
        pixels = np.resize(self._pixels, (batch, *self._pixels.shape[1:]))
        tokens = mix_rows(bundle.clean_token, bundle.robust_token, [0.5] * batch)
        started = time.perf_counter()
        self._engine.run(pixels, tokens)
        return time.perf_counter() - started


def limit(subject: Subject) -> None:
    """Print the limit and what it consists of."""
    bare = Bare(subject)
    for _ in range(subject.rounds):
        bare.measure()
    print_cost(bare.cost, subject)
    bare.close()


def print_cost(cost: Cost, subject: Subject) -> None:
    print(
        f"limit {cost.limit:.1f} images/s = {available_cpus()} cores / ({1000 * cost.decode_s:.2f} ms decode + "
        f"{1000 * cost.engine_s:.2f} ms {subject.engine} {subject.precision} at batch {cost.best_batch}); "
        f"decode while all cores decode {1000 * cost.busy_decode_s:.2f} ms; "
        f"one image alone {1000 * cost.alone_s:.2f} ms",
        flush=True,
    )
