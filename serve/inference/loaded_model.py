"""Runs one loaded bundle: decodes images, and runs their rows on its engine in batches. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve.control.token_cache import TokenCache
from serve.errors import OverloadedError
from serve.inference.batch_policy import Priority
from serve.inference.batcher import Batcher
from serve.inference.decode_process import DecodeOptions
from serve.inference.image_decoders import Decoders
from serve.inference.queue_time import StartSpeed
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_trace import REQUEST_TRACE, StageTimes
from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import Temperatures
from tureen.bundle.token_file import Token, read_tokens
from tureen.engines import open_engine
from tureen.engines.base import TOKEN_BATCH
from tureen.engines.paired import CPU_ENGINES, PairedEngine
from tureen.errors import TureenError
from tureen.image_cost import LEAST_COST, ImageCost, image_cost
from tureen.interface.probabilities import probabilities
from tureen.preprocess import ImageLimits, Pixels
from tureen.soup import Soup

Row = tuple[Pixels, float | NDArray[np.float32]]  # an image, and its β or its token (D,)
START_RUNS = 3  # timed runs that measure the speed of the machine
START_RUNS_S = 0.02  # timed runs of a batch size end after this time; longer ones average disturbances themselves
RETRY_S = 0.1  # between attempts to submit background rows to a full queue


@dataclass(frozen=True)
class InferenceRequest:
    """An image and the β values of its rows. image: encoded bytes, or pixels uint8 (H, W, 3) of the model's size.

    token: float32 (D,), for each row in place of the soup at its β; None: the soup.
    """

    image: bytes | Pixels
    betas: tuple[float, ...]
    cost: ImageCost = LEAST_COST  # estimated cost of decoding the image
    token: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RowOutput:
    """The output of one row.

    logits: float32 (K,). probabilities: float64 (K,), the softmax of logits / temperature. order: int (K,), the labels
    by descending logits; equal logits keep the order of the labels.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    order: NDArray[np.intp]


@dataclass(frozen=True)
class InferenceResult(StageTimes):
    """The outputs of an image at each of its β, the pixels, and the times of decoding, queue and inference.

    pixels: uint8 (H, W, 3). The times of queue and inference are those of the row that ran last.
    """

    outputs: Sequence[RowOutput]  # one for each β
    pixels: Pixels

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits at each β, float32 (len(betas), K)."""
        return np.stack([output.logits for output in self.outputs])


class LoadedModel:
    """A bundle whose engine is ready to run. `close` closes the engine.

    soup: the bundle together with its engine.
    """

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
        """Requires a running event loop. is_idle: returns whether the service has no request in progress.

        on_run: called with the number of rows and the seconds of each run of the engine.
        """
        self.soup = soup
        self.bundle = soup.bundle
        self.parked_tokens: Mapping[str, str] = {}  # why each operator's token that this model cannot use is parked
        self._operator_tokens: dict[str, str] = {}  # SHA-256 by name of the operators' tokens in the soup
        self.is_unused = asyncio.Event()  # set when another model has replaced this one and its last request ended
        self._metrics = metrics
        self._decoders = decoders
        self._decoding = DecodeOptions(self.bundle.manifest.preprocess, settings.limits)

        def on_batch(size: int, seconds: float) -> None:
            metrics.batch_images.observe(size)
            on_run(size, seconds)

        self._batcher: Batcher[Row, RowOutput] = Batcher(
            self._run,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting_images,
            streams=settings.engine_options.streams,
            is_idle=is_idle,
            background_run_s=settings.job_run_ms / 1000,
            on_batch=on_batch,
            on_dropped=lambda reason, count: metrics.dropped.labels(reason).inc(count),
            on_waiting=partial(metrics.pending.set, metrics.queue_images),
            on_failed=metrics.engine_failures.inc,
        )

    async def infer(
        self,
        request: InferenceRequest,
        *,
        deadline_s: float,
        priority: Priority = Priority.ONLINE,
        on_decoded: Callable[[], None] = lambda: None,
    ) -> InferenceResult | TureenError:
        """Decodes the image once, runs one row for each β, and returns the result.

        If `Decoders.decode` or `Batcher.submit` fails, returns the error. Does not raise it, because the other images
        of a client's request still get their results.
        deadline_s: latest time for the end of decoding and for each row to enter a batch (time.monotonic). on_decoded:
        called when decoding ends, even if it fails. Records the result of an online row in the metrics and in the trace
        of the request.
        """
        try:
            try:
                if isinstance(request.image, bytes):
                    pixels, decode_began_s, decode_s = await self._decoders.decode(
                        request.image, request.cost, self._decoding, deadline_s
                    )
                else:
                    pixels, decode_began_s, decode_s = request.image, time.monotonic(), 0.0
            finally:
                on_decoded()
            rows = [
                self._batcher.submit(
                    (pixels, beta if request.token is None else request.token), deadline_s=deadline_s, priority=priority
                )
                for beta in request.betas
            ]
            # A single row needs no task.
            row_results = await asyncio.gather(*rows) if len(rows) > 1 else [await rows[0]]
        except TureenError as error:
            return error
        last = max(row_results, key=lambda row_result: row_result.batch_began_s)
        result = InferenceResult(
            outputs=[row_result.output for row_result in row_results],
            pixels=pixels,
            decode_began_s=decode_began_s,
            decode_s=decode_s,
            queue_s=last.queue_s,
            batch_began_s=last.batch_began_s,
            inference_s=last.inference_s,
            batch_size=last.batch_size,
        )
        if priority is Priority.ONLINE:
            if (trace := REQUEST_TRACE.get()) is not None:
                trace.images.append((request.betas, result))
            self._metrics.observe_stages(result.decode_s, result.queue_s, result.inference_s)
        return result

    async def logits(
        self, pixels: NDArray[np.uint8], betas: Sequence[float | NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Returns logits, float32 (B, K), for pixels uint8 (B, H, W, 3), and B β or tokens float32 (D,).

        Submits the rows as background rows, which run after those of requests. Waits while the queue is full. Raises
        InferenceError if the engine failed on a row.
        """
        logits: dict[int, NDArray[np.float32]] = {}
        while len(logits) < len(betas):
            missing = [row for row in range(len(betas)) if row not in logits]
            submitted = (
                self._batcher.submit((pixels[row], betas[row]), deadline_s=math.inf, priority=Priority.BACKGROUND)
                for row in missing
            )
            row_results = await asyncio.gather(*submitted, return_exceptions=True)
            for row, row_result in zip(missing, row_results, strict=True):
                if not isinstance(row_result, BaseException):
                    logits[row] = row_result.output.logits
                elif not isinstance(row_result, OverloadedError):
                    raise row_result
            if len(logits) < len(betas):
                await asyncio.sleep(RETRY_S)
        return np.stack([logits[row] for row in range(len(betas))])

    @property
    def own_tokens(self) -> list[str]:
        """The names of the tokens that no operator added, sorted: those of the bundle and of --token-dir."""
        return sorted(self.soup.tokens.keys() - self._operator_tokens.keys())

    def load_tokens(self, tokens: Mapping[str, str], cache: TokenCache) -> None:
        """Adds the operators' tokens to the soup, and removes those that are not in `tokens`. Blocks.

        tokens: SHA-256 by name. cache: has their files. A token that cannot be used is parked: `parked_tokens` has the
        reason, and the soup does not have the token. Only one thread may call this method at a time.
        """
        parked: dict[str, str] = {}
        kept = {name for name, sha256 in self._operator_tokens.items() if tokens.get(name) == sha256}
        missing = sorted(tokens.keys() - kept)
        for start in range(0, len(missing), TOKEN_BATCH):
            added: dict[str, Token] = {}
            for name in missing[start : start + TOKEN_BATCH]:
                try:
                    added[name] = cache.read(tokens[name])
                except TureenError as error:
                    parked[name] = str(error)
            parked |= self._add_tokens(added)
        removed = {name for name in self._operator_tokens if name not in tokens or name in parked}
        self.soup.add_tokens([], removed=removed)
        self._operator_tokens = {name: sha256 for name, sha256 in tokens.items() if name not in parked}
        self.parked_tokens = parked

    def _add_tokens(self, tokens: Mapping[str, Token]) -> dict[str, str]:
        """Adds operators' tokens to the soup, in place of those of the same names. Returns why others were not added.

        tokens: by the name in the settings.
        """
        replaced = self._operator_tokens.keys() & tokens.keys()
        try:
            self.soup.add_tokens(tokens.values(), removed=replaced)
            return {}
        except TureenError as error:
            if len(tokens) == 1:
                return dict.fromkeys(tokens, str(error))
        refused: dict[str, str] = {}
        for name, token in tokens.items():  # one by one, to find those that cannot be used
            refused |= self._add_tokens({name: token})
        return refused

    @property
    def is_quiet(self) -> bool:
        """Whether no row of a request has arrived or completed in the last seconds. Any thread may read it."""
        return self._batcher.is_quiet

    def notify_idle(self) -> None:
        """Makes queued background rows start if they can. Must be called when the last request in progress ends."""
        self._batcher.notify_idle()

    async def close(self) -> None:
        """Completes the queued rows, then frees the engine and its threads."""
        await self._batcher.close()
        self.soup.close()

    def _run(self, rows: Sequence[Row]) -> Sequence[RowOutput]:
        choices = [choice for _, choice in rows]
        logits = self.soup.logits(np.stack([pixels for pixels, _ in rows]), choices)
        if not np.isfinite(logits).all():
            raise ArithmeticError("the engine returned logits that are not finite")  # the batcher finds the row
        return row_outputs(logits, choices, self.soup.temperatures)


def row_outputs(
    logits: NDArray[np.float32], choices: Sequence[float | NDArray[np.float32]], temperatures: Temperatures
) -> list[RowOutput]:
    """Returns the output of each row of a batch. Computes them together, which costs little more than for one row.

    logits: float32 (B, K). choices: the β of each row, or its token. The temperature of a token is 1, because none is
    fitted for it.
    """
    is_token = [isinstance(choice, np.ndarray) for choice in choices]
    divisors = temperatures.at([None if isinstance(choice, np.ndarray) else choice for choice in choices])
    divisors[is_token] = 1
    order = np.argsort(-logits, axis=1, kind="stable")
    return list(map(RowOutput, logits, probabilities(logits, divisors), order))


def open_soup(bundle: Bundle, settings: Settings) -> tuple[Soup, StartSpeed]:
    """Opens the engine of the bundle. Returns the Soup, and the measured speed of decoding and engine. Blocks.

    Checks that the engine reproduces the golden rows, PyTorch's logits in the bundle. Warms the engine up at each of
    `warm_sizes`. Adds the tokens in `settings.token_dir`.

    Raises EngineError if no engine can be opened, or if it does not reproduce the golden rows. Raises TokenFileError if
    a token file is damaged or was learned for another backbone, or if there are too many.
    """
    for token in _tokens_of_files(settings):
        token.check_bundle(bundle)  # before the engine is opened, which takes longer
    engine = open_engine(bundle, settings.engine, settings.precision, settings.engine_options)
    if settings.engine_options.streams > 1 and engine.name in CPU_ENGINES:
        alone = open_engine(bundle, engine.name, engine.precision, replace(settings.engine_options, streams=1))
        engine = PairedEngine(alone, engine)
    soup = Soup(bundle, engine, settings.limits, calibrated=settings.calibration, tokens=_tokens_of_files(settings))
    shape = bundle.golden.pixels.shape[1:]
    run_s = {
        size: measure_run_s(partial(soup.logits, np.zeros((size, *shape), np.uint8), [0.0] * size))
        for size in warm_sizes(settings.max_batch)
    }
    return soup, StartSpeed(_decode_unit_s(bundle, settings), run_s)


def _tokens_of_files(settings: Settings) -> Iterable[Token]:
    return () if settings.token_dir is None else read_tokens(settings.token_dir, settings.max_tokens)


def measure_run_s(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds of the shortest run, which is the least disturbed one.

    Runs once to compile and allocate. Then runs START_RUNS times, or until these runs have taken START_RUNS_S seconds.
    """
    shortest_s = measured_s = 0.0
    for number in range(1 + START_RUNS):
        started = clock()
        run()
        seconds = clock() - started
        shortest_s = min(shortest_s, seconds) if number else seconds
        measured_s += seconds if number else 0
        if measured_s >= START_RUNS_S:
            break
    return shortest_s


def _decode_unit_s(bundle: Bundle, settings: Settings) -> float:
    """Returns the seconds of one unit of decoding work (`ImageCost.work`), measured on a generated JPEG."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    image, limits = buffer.getvalue(), ImageLimits()
    cost = image_cost(image, max_pixels=limits.max_image_pixels, max_scans=limits.max_jpeg_scans)
    decoding = DecodeOptions(bundle.manifest.preprocess, limits)
    seconds = []
    for _ in range(START_RUNS):
        started = time.perf_counter()
        decoding.pixels(image)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / cost.work


def warm_sizes(max_batch: int) -> list[int]:
    """Returns the batch sizes to warm up: each power of two below max_batch, and max_batch."""
    return [*(1 << n for n in range(max_batch.bit_length()) if 1 << n < max_batch), max_batch]
