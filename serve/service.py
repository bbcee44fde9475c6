"""A bundle being served: engine, decoding threads, batcher and permits. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve.batcher import Batcher
from serve.errors import DeadlineError, NotReadyError, OverloadedError
from serve.metrics import Metrics, mode_of
from serve.model import Model
from serve.settings import Settings
from tureen.bundle import Bundle
from tureen.engines import open_engine
from tureen.engines.ranking import explain
from tureen.errors import SingleTokenError, TureenError
from tureen.machine import available_cpus
from tureen.preprocess import Pixels, pixels_from_bytes
from tureen.soup import Prediction, Soup, top_predictions
from tureen.tokens import CLEAN_BETA

logger = logging.getLogger("tureen.serve")

Row = tuple[Pixels, float]
BetaSource = Literal["request", "operator", "bundle"]


@dataclass(frozen=True)
class Choice:
    """The β of one request, fixed at its admission: where it comes from, and at which revision of the settings."""

    beta: float | None  # None: the model has one token
    source: BetaSource
    revision: int


@dataclass(frozen=True)
class Asked:
    image: bytes | Pixels
    betas: tuple[float, ...]


@dataclass(frozen=True)
class Answered:
    logits: NDArray[np.float32]
    decode_s: float
    queue_s: float
    inference_s: float


class Admission:
    def __init__(self, service: Service, timeout_ms: int) -> None:
        self.service, self.model, self.timeout_ms = service, service.model, timeout_ms
        self.arrived_s = time.monotonic()
        self.deadline_s = self.arrived_s + timeout_ms / 1000

    def choose(self, beta: float | None) -> Choice:
        return self.service.choose(beta)

    async def _one(self, asked: Asked) -> Answered | TureenError:
        s = self.service
        try:
            if isinstance(asked.image, bytes):
                pixels, decode_s = await asyncio.get_running_loop().run_in_executor(
                    s._decoders, s._decode, asked.image, self.arrived_s
                )
            else:
                pixels, decode_s = asked.image, 0.0
            assert s._batcher is not None
            a = await s._batcher.submit((pixels, asked.betas[0]), timeout_ms=self.timeout_ms, arrived_s=self.arrived_s)
            return Answered(a.result[None], decode_s, a.queue_s, a.inference_s)
        except TureenError as error:
            return error

    async def answer(self, asked: Sequence[Asked]) -> list[Answered | TureenError]:
        return list(await asyncio.gather(*(self._one(a) for a in asked)))


@dataclass(frozen=True)
class Classified:
    """One image's answer, and the seconds that each stage took."""

    predictions: list[Prediction]
    decode_s: float
    queue_s: float
    inference_s: float


class Service:
    """Classifies images, each at its own β, in shared batches. Not ready until `open` is done."""

    def __init__(self, settings: Settings, bundle: Bundle, metrics: Metrics) -> None:
        self.settings = settings
        self.bundle = bundle
        self.metrics = metrics
        self._permits_taken = 0
        self._is_draining = False
        self.soup: Soup | None = None
        self._batcher: Batcher[Row, NDArray[np.float32]] | None = None
        self._decoders = ThreadPoolExecutor(min(8, available_cpus()), thread_name_prefix="decode")
        self._default = _default_choice(bundle, settings.default_beta)
        metrics.default_beta.set(math.nan if self._default.beta is None else self._default.beta)
        metrics.is_ready.set(0)

    @property
    def is_ready(self) -> bool:
        """Whether an engine has reproduced the golden rows here."""
        return self._batcher is not None and not self._is_draining

    def drain(self) -> None:
        """Be no longer ready; requests are answered all the same."""
        self._is_draining = True
        self.metrics.is_ready.set(0)

    async def reload(self) -> None:
        raise NotImplementedError

    async def open(self) -> None:
        """Compile, prove and warm the engine on a thread, then take requests; raises EngineError."""
        started = time.monotonic()
        self.soup = await asyncio.to_thread(self._open_soup)
        engine = self.soup.engine
        self._batcher = Batcher(
            self._run,
            max_batch=self.settings.max_batch,
            max_waiting=self.settings.max_requests,
            streams=self.settings.streams,
            on_batch=lambda size, seconds: self.metrics.batch_images.observe(size),
            on_dropped=lambda reason, count: self.metrics.dropped.labels(reason).inc(count),
            on_waiting=self.metrics.queue_images.set,
        )
        self.metrics.serves(
            {
                "model": self.bundle.manifest.name,
                "version": self.bundle.manifest.version,
                "engine": engine.name,
                "engine_version": engine.version,
                "precision": engine.precision,
            }
        )
        self.metrics.is_ready.set(1)
        model = f"{self.bundle.manifest.name} {self.bundle.manifest.version}"
        runtime = f"{engine.name} {engine.precision}"
        seconds = time.monotonic() - started
        why = explain(self.bundle, self.settings.engine_options)
        known = f"; {why}" if why else ""
        logger.info("ready: %s on %s, golden rows reproduced, after %.1f s%s", model, runtime, seconds, known)

    async def close(self) -> None:
        """Answer what was accepted, then free engine and threads."""
        if self._batcher is not None:
            await self._batcher.close()
        if self.soup is not None:
            self.soup.close()
        self._decoders.shutdown()

    @property
    def model(self) -> Model:
        if self.soup is None or self._batcher is None:
            raise NotReadyError
        return Model(self.bundle, self.soup)

    @contextmanager
    def admit(self, timeout_ms: int | None = None) -> Iterator[Admission]:
        """A permit for one request, held until it is answered; raises NotReadyError or OverloadedError at once."""
        if self._batcher is None:
            raise NotReadyError
        if self._permits_taken >= self.settings.max_requests:
            raise OverloadedError
        self._permits_taken += 1
        self.metrics.in_flight.set(self._permits_taken)
        try:
            yield Admission(self, timeout_ms or self.settings.timeout_ms)
        finally:
            self._permits_taken -= 1
            self.metrics.in_flight.set(self._permits_taken)

    def choose(self, beta: float | None) -> Choice:
        """The β that a request gets: its own, else the operator's default, else the bundle's.

        Raises SingleTokenError where it names one and the model has a single token.
        """
        if beta is None:
            return self._default
        if not self.bundle.manifest.has_two_tokens:
            raise SingleTokenError
        return Choice(beta, "request", self._default.revision)

    async def classify(self, image: bytes, choice: Choice, *, top_k: int, arrived_s: float) -> Classified:
        """The image's top labels at the chosen β; raises ImageError or ServeError. arrived_s: time.monotonic."""
        if self._batcher is None:
            raise NotReadyError
        pixels, decode_s = await asyncio.get_running_loop().run_in_executor(
            self._decoders, self._decode, image, arrived_s
        )
        beta = CLEAN_BETA if choice.beta is None else choice.beta  # of one token every β makes the same
        answer = await self._batcher.submit((pixels, beta), timeout_ms=self.settings.timeout_ms, arrived_s=arrived_s)
        stages = {"decode": decode_s, "queue": answer.queue_s, "inference": answer.inference_s}
        for stage, seconds in stages.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
        self.metrics.classifications.labels(mode_of(choice.beta), choice.source).inc()
        predictions = top_predictions(answer.result, self.bundle.manifest.labels, top_k)
        return Classified(predictions, decode_s, answer.queue_s, answer.inference_s)

    def _open_soup(self) -> Soup:
        settings = self.settings
        engine = open_engine(self.bundle, settings.engine, settings.precision, settings.engine_options)
        soup = Soup(self.bundle, engine, settings.limits)
        size = 1
        while size <= settings.max_batch:  # engines compile or allocate for each new batch size
            shape = (size, *self.bundle.golden.pixels.shape[1:])
            soup.logits(np.zeros(shape, np.uint8), [0.0] * size)
            size *= 2
        return soup

    def _decode(self, image: bytes, arrived_s: float) -> tuple[Pixels, float]:
        if time.monotonic() > arrived_s + self.settings.timeout_ms / 1000:
            raise DeadlineError(self.settings.timeout_ms)
        started = time.perf_counter()
        pixels = pixels_from_bytes(image, self.bundle.manifest.preprocess, self.settings.limits)
        return pixels, time.perf_counter() - started

    def _run(self, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        assert self.soup is not None
        return list(self.soup.logits(np.stack([pixels for pixels, _ in rows]), [beta for _, beta in rows]))


def _default_choice(bundle: Bundle, operators: float | None) -> Choice:
    """The β of a request that names none: the operator's, else the bundle's; raises SingleTokenError."""
    if not bundle.manifest.has_two_tokens:
        if operators is not None:
            raise SingleTokenError("--default-beta")
        return Choice(None, "bundle", 0)
    return Choice(bundle.manifest.default_beta, "bundle", 0) if operators is None else Choice(operators, "operator", 0)
