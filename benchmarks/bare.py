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
TURNS = 4  # of each engine at each batch, in each round


@dataclass(frozen=True)
class Cost:
    """Core-seconds for one image, and what one image alone takes."""

    decode_s: float  # mean over the images, one thread, the other cores idle
    busy_decode_s: float  # the same while every core decodes
    engine_s: float  # cores × seconds for an image, at the best batch and number of streams
    best_batch: int
    best_streams: int
    alone_s: float  # decoding and inference at batch 1, one after the other: median over the images

    @property
    def limit(self) -> float:
        """Images a second that the machine's cores can classify."""
        return available_cpus() / (self.decode_s + self.engine_s)


class Bare:
    """Decoder and engine of the server in this process, measured round by round.

    The engine runs as one stream of all cores and as a stream for each core, whatever the server chose: the better of
    the two is what the machine can do.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._engines: dict[int, Engine] = {n: subject.open_engine(n) for n in sorted({1, available_cpus()})}
        self._decode: list[list[float]] = []  # round by round, CPU seconds for each image
        self._busy_decode: list[float] = []
        self._runs: dict[tuple[int, int], list[float]] = {(n, b): [] for n in self._engines for b in BATCHES}
        self._cores = ThreadPoolExecutor(available_cpus())
        spec = subject.bundle.manifest.preprocess
        self._pixels = np.stack([pixels_from_bytes(image, spec) for image in subject.images[: max(BATCHES)]])

    def measure(self) -> None:
        """One round, all cores to itself: every image decoded, the engine at each batch."""
        images = self._subject.images
        self._decode.append([self._decode_s(image) for image in images])
        self._busy_decode.append(mean(self._cores.map(self._decode_s, images)))
        for _ in range(TURNS):
            for (streams, batch), seconds in self._runs.items():
                seconds.append(self._run_s(streams, batch))

    @property
    def cost(self) -> Cost:
        """Medians of the rounds so far."""
        each = np.median(np.array(self._decode), axis=0)
        runs = {key: median(seconds) for key, seconds in self._runs.items()}
        streams, batch = min(runs, key=lambda key: runs[key] / (key[0] * key[1]))
        return Cost(
            decode_s=float(each.mean()),
            busy_decode_s=median(self._busy_decode),
            engine_s=available_cpus() * runs[streams, batch] / (streams * batch),
            best_batch=batch,
            best_streams=streams,
            alone_s=float(np.median(each)) + runs[1, 1],
        )

    def close(self) -> None:
        self._cores.shutdown()
        for engine in self._engines.values():
            engine.close()

    def _decode_s(self, image: bytes) -> float:
        # The thread's own CPU time: what others do on this machine counts for nothing.
        started = time.thread_time()
        pixels_from_bytes(image, self._subject.bundle.manifest.preprocess)
        return time.thread_time() - started

    def _run_s(self, streams: int, batch: int) -> float:
        bundle, engine = self._subject.bundle, self._engines[streams]
        pixels = np.resize(self._pixels, (batch, *self._pixels.shape[1:]))
        tokens = mix_rows(bundle.clean_token, bundle.robust_token, [0.5] * batch)
        started = time.perf_counter()
        list(self._cores.map(lambda _: engine.run(pixels, tokens), range(streams)))
        return time.perf_counter() - started


def limit(subject: Subject) -> None:
    """Print the limit and what it consists of."""
    bare = Bare(subject)
    for _ in range(subject.rounds):
        bare.measure()
    print_cost(bare.cost, subject)
    bare.close()


def print_cost(cost: Cost, subject: Subject) -> None:
    best = f"{subject.engine} {subject.precision}, {cost.best_streams} × batch {cost.best_batch}"
    print(
        f"limit {cost.limit:.1f} images/s = {available_cpus()} cores / "
        f"({1000 * cost.decode_s:.2f} ms decode + {1000 * cost.engine_s:.2f} ms {best}); "
        f"decode on all cores at once {1000 * cost.busy_decode_s:.2f} ms; one image alone {1000 * cost.alone_s:.2f} ms",
        flush=True,
    )
