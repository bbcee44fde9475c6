"""One loaded bundle: its engine, proven and warm, and the batcher that feeds it. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve.batcher import Batcher
from serve.errors import DeadlineError, OverloadedError
from serve.metrics import Metrics
from serve.policy import Priority
from serve.settings import Settings
from tureen.bundle import Bundle
from tureen.engines import open_engine
from tureen.engines.paired import CPU_ENGINES, PairedEngine
from tureen.preprocess import Pixels, pixels_from_bytes
from tureen.soup import Soup

Row = tuple[Pixels, float]
FULL_S = 0.1  # before rows for which nobody waits are tried again where the queue was full


@dataclass(frozen=True)
class Asked:
    """An image and every β it is asked at: encoded bytes, or pixels uint8 (H, W, 3) of the model's size."""

    image: bytes | Pixels
    betas: tuple[float, ...]


@dataclass(frozen=True)
class Answered:
    """An image's logits, float32 (len(betas), K), and what the last of its rows spent in each stage.

    When a stage began is time.monotonic.
    """

    logits: NDArray[np.float32]
    pixels: Pixels
    decode_began_s: float
    decode_s: float
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


class Model:
    """A bundle that can be asked. Made by `open_model`; whoever made it closes it once nobody asks any more."""

    def __init__(
        self, soup: Soup, settings: Settings, metrics: Metrics, decoders: Executor, is_idle: Callable[[], bool]
    ) -> None:
        """Called in the running loop. decoders: where images are decoded. is_idle: whether no request is here now."""
        self.soup = soup
        self.bundle = soup.bundle
        self.is_unused = asyncio.Event()  # set where nobody asks it any more, after another took its place
        self._settings = settings
        self._decoders = decoders
        self._batcher: Batcher[Row, NDArray[np.float32]] = Batcher(
            self._run,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting_images,
            streams=settings.engine_options.streams,
            is_idle=is_idle,
            background_run_s=settings.job_run_ms / 1000,
            on_batch=lambda size, seconds: metrics.batch_images.observe(size),
            on_dropped=lambda reason, count: metrics.dropped.labels(reason).inc(count),
            on_waiting=metrics.queue_images.set,
            on_failed=metrics.engine_failures.inc,
        )

    async def ask(self, asked: Asked, *, deadline_s: float, priority: Priority = Priority.ONLINE) -> Answered:
        """Decode the image once, run a row for each β; raises an ImageError or a ServeError.

        deadline_s: by when (time.monotonic) it must be decoded, and each row in a batch.
        """
        if isinstance(asked.image, bytes):
            pixels, decode_began_s, decode_s = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._decode, asked.image, deadline_s
            )
        else:
            pixels, decode_began_s, decode_s = asked.image, time.monotonic(), 0.0
        rows = [self._batcher.submit((pixels, beta), deadline_s=deadline_s, priority=priority) for beta in asked.betas]
        answers = await asyncio.gather(*rows) if len(rows) > 1 else [await rows[0]]  # one needs no task
        last = max(answers, key=lambda answer: answer.batch_began_s)
        return Answered(
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

    def _decode(self, image: bytes, deadline_s: float) -> tuple[Pixels, float, float]:
        began_s = time.monotonic()
        if began_s > deadline_s:
            raise DeadlineError
        spec, settings = self.bundle.manifest.preprocess, self._settings
        pixels = pixels_from_bytes(image, spec, settings.limits, jpeg_scaling=settings.jpeg_scaling)
        return pixels, began_s, time.monotonic() - began_s

    def _run(self, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        logits = self.soup.logits(np.stack([pixels for pixels, _ in rows]), [beta for _, beta in rows])
        if not np.isfinite(logits).all():
            raise ArithmeticError("logits that are no numbers")  # the batcher finds the row
        return list(logits)


def open_soup(bundle: Bundle, settings: Settings) -> tuple[Soup, float]:
    """The bundle's engine, proven on the golden rows and warm at each size of batch, and the seconds an image took.

    Blocks for as long as that takes; raises EngineError.
    """
    engine = open_engine(bundle, settings.engine, settings.precision, settings.engine_options)
    if settings.engine_options.streams > 1 and engine.name in CPU_ENGINES:
        alone = open_engine(bundle, engine.name, engine.precision, replace(settings.engine_options, streams=1))
        engine = PairedEngine(alone, engine)
    soup = Soup(bundle, engine, settings.limits)
    for size in (*warm_sizes(settings.max_batch), settings.max_batch):  # engines compile or allocate for each
        started = time.perf_counter()
        soup.logits(np.zeros((size, *bundle.golden.pixels.shape[1:]), np.uint8), [0.0] * size)
        image_s = (time.perf_counter() - started) / size
    return soup, image_s


def warm_sizes(max_batch: int) -> list[int]:
    """Sizes of batch: the powers of two below the largest, and the largest."""
    return [*(1 << n for n in range(max_batch.bit_length()) if 1 << n < max_batch), max_batch]
