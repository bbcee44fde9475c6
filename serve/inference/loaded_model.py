"""One loaded bundle: its engine, proven and warm, and the batcher that feeds it. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve.errors import OverloadedError
from serve.inference.batch_policy import Priority
from serve.inference.batcher import Batcher
from serve.inference.decode_process import DecodeOptions
from serve.inference.image_decoders import Decoders
from serve.inference.queue_time import StartSpeed
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_trace import StageTimes
from tureen.bundle.bundle import Bundle
from tureen.engines import open_engine
from tureen.engines.paired import CPU_ENGINES, PairedEngine
from tureen.image_cost import LEAST, ImageCost, image_cost
from tureen.preprocess import ImageLimits, Pixels
from tureen.soup import Soup

Row = tuple[Pixels, float]
START_RUNS = 3  # by which the speed of the machine is measured
FULL_S = 0.1  # before rows for which nobody waits are tried again where the queue was full


@dataclass(frozen=True)
class InferenceRequest:
    """An image and every β it is asked at: encoded bytes, or pixels uint8 (H, W, 3) of the model's size."""

    image: bytes | Pixels
    betas: tuple[float, ...]
    cost: ImageCost = LEAST


@dataclass(frozen=True)
class InferenceResult(StageTimes):
    """An image's logits, float32 (len(betas), K), its pixels, and the times of the last of its rows."""

    logits: NDArray[np.float32]
    pixels: Pixels


class LoadedModel:
    """A bundle that can be asked. Made by `open_model`; whoever made it closes it once nobody asks any more."""

    def __init__(
        self,
        soup: Soup,
        settings: Settings,
        metrics: Metrics,
        decoders: Decoders,
        *,
        is_idle: Callable[[], bool],
        on_run: Callable[[int, float], None],
    ) -> None:
        """Called in the running loop. decoders: where images are decoded. is_idle: whether no request is here now.

        on_run: called with the rows and the seconds of each run of the engine.
        """
        self.soup = soup
        self.bundle = soup.bundle
        self.is_unused = asyncio.Event()  # set where nobody asks it any more, after another took its place
        self._decoders = decoders
        self._decoding = DecodeOptions(self.bundle.manifest.preprocess, settings.limits, settings.jpeg_scaling)

        def on_batch(size: int, seconds: float) -> None:
            metrics.batch_images.observe(size)
            on_run(size, seconds)

        self._batcher: Batcher[Row, NDArray[np.float32]] = Batcher(
            self._run,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting_images,
            streams=settings.engine_options.streams,
            is_idle=is_idle,
            background_run_s=settings.job_run_ms / 1000,
            on_batch=on_batch,
            on_dropped=lambda reason, count: metrics.dropped.labels(reason).inc(count),
            on_waiting=metrics.queue_images.set,
            on_failed=metrics.engine_failures.inc,
        )

    async def ask(
        self,
        asked: InferenceRequest,
        *,
        deadline_s: float,
        priority: Priority = Priority.ONLINE,
        on_decoded: Callable[[], None] = lambda: None,
    ) -> InferenceResult:
        """Decode the image once, run a row for each β; raises an ImageError or a ServeError.

        deadline_s: by when (time.monotonic) it must be decoded, and each row in a batch. on_decoded: called once
        decoding has ended, however.
        """
        try:
            if isinstance(asked.image, bytes):
                pixels, decode_began_s, decode_s = await self._decoders.decode(
                    asked.image, asked.cost, self._decoding, deadline_s
                )
            else:
                pixels, decode_began_s, decode_s = asked.image, time.monotonic(), 0.0
        finally:
            on_decoded()
        rows = [self._batcher.submit((pixels, beta), deadline_s=deadline_s, priority=priority) for beta in asked.betas]
        answers = await asyncio.gather(*rows) if len(rows) > 1 else [await rows[0]]  # one needs no task
        last = max(answers, key=lambda answer: answer.batch_began_s)
        return InferenceResult(
            logits=np.stack([answer.result for answer in answers]),
            pixels=pixels,
            decode_began_s=decode_began_s,
            decode_s=decode_s,
            queue_s=last.queue_s,
            batch_began_s=last.batch_began_s,
            inference_s=last.inference_s,
            batch_size=last.batch_size,
        )

    async def logits(self, pixels: NDArray[np.uint8], betas: Sequence[float]) -> NDArray[np.float32]:
        """float32 (B, K) of pixels uint8 (B, H, W, 3), each at its β, for nobody who waits: behind every request.

        Raises InferenceError.
        """
        logits: dict[int, NDArray[np.float32]] = {}
        while len(logits) < len(betas):
            missing = [row for row in range(len(betas)) if row not in logits]
            submitted = (
                self._batcher.submit((pixels[row], betas[row]), deadline_s=math.inf, priority=Priority.BATCH)
                for row in missing
            )
            answers = await asyncio.gather(*submitted, return_exceptions=True)
            for row, answer in zip(missing, answers, strict=True):
                if not isinstance(answer, BaseException):
                    logits[row] = answer.result
                elif not isinstance(answer, OverloadedError):
                    raise answer
            if len(logits) < len(betas):
                await asyncio.sleep(FULL_S)
        return np.stack([logits[row] for row in range(len(betas))])

    def wake(self) -> None:
        """Say that it may be idle now."""
        self._batcher.wake()

    async def close(self) -> None:
        """Answer what waits, then free engine and threads."""
        await self._batcher.close()
        self.soup.close()

    def _run(self, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        logits = self.soup.logits(np.stack([pixels for pixels, _ in rows]), [beta for _, beta in rows])
        if not np.isfinite(logits).all():
            raise ArithmeticError("logits that are no numbers")  # the batcher finds the row
        return list(logits)


def open_soup(bundle: Bundle, settings: Settings) -> tuple[Soup, StartSpeed]:
    """The bundle's engine, proven on the golden rows and warm at each size of batch, and how fast this machine is.

    Blocks for as long as that takes; raises EngineError.
    """
    engine = open_engine(bundle, settings.engine, settings.precision, settings.engine_options)
    if settings.engine_options.streams > 1 and engine.name in CPU_ENGINES:
        alone = open_engine(bundle, engine.name, engine.precision, replace(settings.engine_options, streams=1))
        engine = PairedEngine(alone, engine)
    soup = Soup(bundle, engine, settings.limits)
    run_s: dict[int, float] = {}
    for size in warm_sizes(settings.max_batch):
        # Engines compile or allocate for each size at its first run. Of more, the quickest is the least disturbed.
        for _ in range(1 + START_RUNS):
            started = time.perf_counter()
            soup.logits(np.zeros((size, *bundle.golden.pixels.shape[1:]), np.uint8), [0.0] * size)
            run_s[size] = min(run_s.get(size, math.inf), time.perf_counter() - started)
    return soup, StartSpeed(_decode_s(bundle, settings), run_s)


def _decode_s(bundle: Bundle, settings: Settings) -> float:
    """Seconds for a unit of decoding work, on a JPEG drawn here."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    image, limits = buffer.getvalue(), ImageLimits()
    cost = image_cost(image, max_pixels=limits.max_image_pixels, max_scans=limits.max_jpeg_scans)
    decoding = DecodeOptions(bundle.manifest.preprocess, limits, settings.jpeg_scaling)
    seconds = []
    for _ in range(START_RUNS):
        started = time.perf_counter()
        decoding.pixels(image)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / cost.work


def warm_sizes(max_batch: int) -> list[int]:
    """Sizes of batch: the powers of two below the largest, and the largest."""
    return [*(1 << n for n in range(max_batch.bit_length()) if 1 << n < max_batch), max_batch]
