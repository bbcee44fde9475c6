"""Computes the throughput limit of the machine from the speed of the decoder and of the engine, without a server.

The limit in images per second is cores / (core-seconds to decode an image + core-seconds of the engine for an image).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from benchmarks.workload import Workload
from tureen.engines.base import Engine
from tureen.machine import available_cpus
from tureen.preprocess import pixels_from_bytes
from tureen.tokens import mix_rows

BATCH_SIZES = (1, 4, 8, 16, 32)
RUNS_PER_ROUND = 4  # of each engine at each batch size


@dataclass(frozen=True)
class ImageCost:
    """The measured cost of one image: core-seconds in the decoder and in the engine, and latency of a single image."""

    decode_s: float  # mean over the images; one thread, the other cores idle
    busy_decode_s: float  # the same mean while every core decodes
    engine_s: float  # cores × seconds per image, at the best batch size and number of streams
    best_batch: int  # batch size with the least engine_s
    best_streams: int  # number of streams with the least engine_s
    single_image_s: float  # decoding, then inference at batch 1: median over the images

    @property
    def images_per_s(self) -> float:
        """Throughput limit: images per second that all cores of this machine can classify."""
        return available_cpus() / (self.decode_s + self.engine_s)


class LimitMeasurement:
    """Measures the server's decoder and engine in this process, round by round.

    Runs the engine with one stream that uses all cores, and with one stream per core. The limit uses the faster
    setting, even if the server uses the other.
    """

    def __init__(self, workload: Workload) -> None:
        self._subject = workload
        self._engines: dict[int, Engine] = {n: workload.open_engine(n) for n in sorted({1, available_cpus()})}
        self._decode: list[list[float]] = []  # one list per round: CPU seconds of each image
        self._busy_decode: list[float] = []
        self._runs: dict[tuple[int, int], list[float]] = {(n, b): [] for n in self._engines for b in BATCH_SIZES}
        self._cores = ThreadPoolExecutor(available_cpus())
        spec = workload.bundle.manifest.preprocess
        self._pixels = np.stack([pixels_from_bytes(image, spec) for image in workload.images[: max(BATCH_SIZES)]])

    def measure_round(self) -> None:
        """Measures one round: decodes every image, and runs the engine at each batch size. All cores must be idle."""
        images = self._subject.images
        self._decode.append([self._decode_s(image) for image in images])
        self._busy_decode.append(mean(self._cores.map(self._decode_s, images)))
        for _ in range(RUNS_PER_ROUND):
            for (streams, batch), seconds in self._runs.items():
                seconds.append(self._run_s(streams, batch))

    @property
    def cost(self) -> ImageCost:
        """The cost per image, computed from the medians over the rounds."""
        decode_s = np.median(np.array(self._decode), axis=0)
        runs = {key: median(seconds) for key, seconds in self._runs.items()}
        streams, batch = min(runs, key=lambda key: runs[key] / (key[0] * key[1]))
        return ImageCost(
            decode_s=float(decode_s.mean()),
            busy_decode_s=median(self._busy_decode),
            engine_s=available_cpus() * runs[streams, batch] / (streams * batch),
            best_batch=batch,
            best_streams=streams,
            single_image_s=float(np.median(decode_s)) + runs[1, 1],
        )

    def close(self) -> None:
        self._cores.shutdown()
        for engine in self._engines.values():
            engine.close()

    def _decode_s(self, image: bytes) -> float:
        # CPU time of the thread, so that other processes do not count.
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


def measure_limit(workload: Workload) -> None:
    """Measures and prints the throughput limit of this machine, and the time per image of decoder and engine."""
    measurement = LimitMeasurement(workload)
    for _ in range(workload.rounds):
        measurement.measure_round()
    print_limit(measurement.cost, workload)
    measurement.close()


def print_limit(cost: ImageCost, workload: Workload) -> None:
    best = f"{workload.engine} {workload.precision}, {cost.best_streams} × batch {cost.best_batch}"
    print(
        f"limit {cost.images_per_s:.1f} images/s = {available_cpus()} cores / "
        f"({1000 * cost.decode_s:.2f} ms decode + {1000 * cost.engine_s:.2f} ms {best}); "
        f"decode while all cores decode {1000 * cost.busy_decode_s:.2f} ms; "
        f"single image {1000 * cost.single_image_s:.2f} ms",
        flush=True,
    )
