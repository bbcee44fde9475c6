"""Turns the images of shards into finished shards: a pool reads and decodes images while the engine runs.

Every queue is bounded. A batch never has rows of two shards, and its rows follow the order of the listing. So a shard
that is made again has the same content.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from serve.errors import JobError
from serve.inference.batch_policy import BatchParts
from serve.jobs.decoding import DecodePool, DecodeResult
from serve.jobs.image_source import InputImage
from serve.jobs.shard_file import Shard
from tureen.bundle.manifest import Temperatures
from tureen.preprocess import Pixels
from tureen.tokens import Mix

logger = logging.getLogger("tureen.jobs")

INFERENCE_FAILED = "inference_failed"
CHUNK = 32  # images per task of the pool: handing a task over, and the result back, costs as much as a small image

Classify = Callable[[NDArray[np.uint8], Sequence[float | NDArray[np.float32]]], NDArray[np.float32]]
"""Returns logits float32 (N, K) for pixels uint8 (N, H, W, 3), and N β or tokens (D,). Several threads may call it."""
OnImages = Callable[[int, int], None]
"""Receives the number of newly finished images, and how many of these failed. An error that it raises ends the job."""


@dataclass(frozen=True)
class ShardInput:
    """The images of one shard that the pipeline must classify.

    number: the number of the shard. shard: receives the rows. images: pairs of an image's first row index and the
    image. An image has a row for each β of the job, or a single row if the input gives its β.
    """

    number: int
    shard: Shard
    images: Iterable[tuple[int, InputImage]]


@dataclass
class FinishedShard:
    """A shard with all its rows."""

    number: int
    shard: Shard


@dataclass
class _Batch:
    """Rows of one shard that form one run of the engine.

    rows: indices in the shard. pixels, betas: one for each row.
    """

    shard: Shard
    rows: list[int] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)


def at_mix(classify: Classify, mix: Mix | None, tokens: Mapping[str, NDArray[np.float32]]) -> Classify:
    """Returns a function that classifies every row at the mix, whatever its β; `classify` itself without a mix.

    tokens: those of the model by name. Raises UnknownTokenError if a token of the mix does not exist.
    """
    if mix is None:
        return classify
    vector = mix.vector(tokens)
    return lambda pixels, betas: classify(pixels, [vector] * len(betas))


class Pipeline:
    """Classifies images in batches, with `streams` simultaneous runs of the engine.

    classify: runs the engine. decode_pool: reads and decodes images. betas: the β values of the job; (None,) if the
    model has one token. Each image has a row for each of these β, or a single row if the input gives its β.
    temperatures: by which logits are divided for probabilities. batch_rows: rows in one run of the engine.
    """

    def __init__(
        self,
        classify: Classify,
        decode_pool: DecodePool,
        betas: Sequence[float | None],
        *,
        temperatures: Temperatures,
        batch_rows: int,
        streams: int,
    ) -> None:
        self._classify, self._decode_pool, self._betas = classify, decode_pool, betas
        self._temperatures, self._batch_rows, self._streams = temperatures, batch_rows, streams

    def run(self, inputs: Iterable[ShardInput], on_images: OnImages) -> Iterator[FinishedShard]:
        """Yields the finished shards in the order of `inputs`. While the caller writes one, the next are in progress.

        Raises JobError if the engine fails on every image of a batch of two or more, and any error of `on_images`.
        """
        with ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(self._streams, "engine"))
            # If the caller stops early: cancel the queued runs, and wait for the active ones.
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            pending: deque[Future[None] | FinishedShard] = deque()
            for shard_input in inputs:
                for batch in self._batches(shard_input, on_images):
                    pending.append(threads.submit(self._run, batch))
                    yield from self._finished(pending, self._streams + 1)
                pending.append(FinishedShard(shard_input.number, shard_input.shard))
            yield from self._finished(pending, 0)

    def _finished(self, pending: deque[Future[None] | FinishedShard], max_runs: int) -> Iterator[FinishedShard]:
        """Removes finished runs and shards from the front of `pending`, and yields the shards.

        Waits until at most `max_runs` runs are pending. Raises the error of a run that failed.
        """
        while pending and (
            isinstance(pending[0], FinishedShard)
            or pending[0].done()
            or sum(isinstance(one, Future) for one in pending) > max_runs
        ):
            first = pending.popleft()
            if isinstance(first, FinishedShard):
                yield first
            else:
                first.result()

    def _batches(self, shard_input: ShardInput, on_images: OnImages) -> Iterator[_Batch]:
        batch = _Batch(shard_input.shard)
        for first_row, image, result in self._decode_all(shard_input.images):
            betas = self._betas if image.beta is None else [image.beta]
            for row, beta in enumerate(betas, start=first_row):
                _fill_columns(shard_input.shard, row, image, result, beta)
                if result.pixels is not None:
                    batch.rows.append(row)
                    batch.pixels.append(result.pixels)
                    batch.betas.append(0.0 if beta is None else beta)
                if len(batch.rows) == self._batch_rows:
                    yield batch
                    batch = _Batch(shard_input.shard)
            on_images(1, 0 if result.error_code is None else 1)
        if batch.rows:
            yield batch

    def _decode_all(self, images: Iterable[tuple[int, InputImage]]) -> Iterator[tuple[int, InputImage, DecodeResult]]:
        """Yields for each image its first row index, the image, and the result of decoding it, in order.

        Decodes about one batch ahead of the caller.
        """
        pool = self._decode_pool
        max_ahead = max(-(-self._batch_rows // CHUNK), 2 * pool.count)
        ahead: deque[tuple[list[tuple[int, InputImage]], Future[list[DecodeResult]]]] = deque()
        next_images: deque[tuple[int, InputImage]] = deque()
        remaining = iter(images)
        while True:
            next_images.extend(islice(remaining, CHUNK - len(next_images)))
            if next_images:
                count, future = pool.submit([image for _, image in next_images])
                ahead.append(([next_images.popleft() for _ in range(count)], future))
                is_last = False
            else:
                is_last = True
            while ahead and (is_last or len(ahead) > max_ahead):
                decoded, future = ahead.popleft()
                for (row, image), result in zip(decoded, future.result(), strict=True):
                    yield row, image, result
            if is_last:
                return

    def _run(self, batch: _Batch) -> None:
        """Classifies a batch, and writes the classes into its rows of the shard.

        If the engine fails, runs each half of the batch separately, and so on. A row that fails alone gets an error
        code. Raises JobError if every row of a batch of two or more fails.
        """
        shard, pixels = batch.shard, np.stack(batch.pixels)
        failed = 0
        parts = BatchParts(range(len(batch.rows)))
        for part in parts:
            selection = slice(part[0], part[-1] + 1)
            rows = batch.rows[selection]
            try:
                betas = batch.betas[selection]
                shard.fill(rows, self._classify(pixels[selection], betas), self._temperatures.at(betas))
            except JobError:
                raise
            except Exception as error:  # noqa: BLE001 - the runtimes' exceptions have no common base class
                if parts.halve(part):
                    continue
                logger.error("the engine failed on a single image: %s", error)
                shard.error_codes[rows[0]], shard.errors[rows[0]] = INFERENCE_FAILED, "the engine failed on this image"
                failed += 1
        if failed == len(batch.rows) > 1:
            raise JobError(f"the engine fails on every image of a batch of {failed}; the log has the engine's message")


def _fill_columns(shard: Shard, row: int, image: InputImage, result: DecodeResult, beta: float | None) -> None:
    shard.ids[row], shard.paths[row] = _printable(image.id), _printable(image.path)
    shard.sha256[row], shard.betas[row] = result.sha256, beta
    shard.error_codes[row], shard.errors[row] = result.error_code, result.error


def _printable(name: str) -> str:
    """Returns a file name as valid text. Bytes that are not UTF-8 become escapes such as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
