"""Images in, shards out: reading and decoding on threads, beside them the engine, all windows bounded.

A batch never holds rows of two shards, and its rows follow the listing: a shard that is made again is the same.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from serve.errors import JobError
from serve.jobs.decoding import Read, Readers
from serve.jobs.image_source import Item
from serve.jobs.shard import Shard
from tureen.preprocess import Pixels

logger = logging.getLogger("tureen.jobs")

INFERENCE_FAILED = "inference_failed"
CHUNK = 8  # images decoded by a thread before it takes more: handing over costs as much as decoding a small one


@dataclass(frozen=True)
class Work:
    """Images of one shard to be classified, each at all β or at its own, and the row where each begins."""

    number: int
    shard: Shard
    items: Iterable[tuple[int, Item]]


@dataclass
class Finished:
    """A shard with every row filled in."""

    number: int
    shard: Shard


@dataclass
class _Batch:
    shard: Shard
    at: list[int] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)


Classify = Callable[[NDArray[np.uint8], Sequence[float]], NDArray[np.float32]]
"""Logits (N, K) of pixels (N, H, W, 3), each at its β; may be called from several threads."""
OnImages = Callable[[int, int], None]
"""Told of images done and of those among them that failed; what it raises ends the job."""


class Pipeline:
    """Classifies the images that readers read.

    betas: of each image, None alone where the model has one token; an item's own takes their place.
    batch_rows: rows in a run of the engine; streams: such runs at a time.
    """

    def __init__(
        self,
        classify: Classify,
        readers: Readers,
        betas: Sequence[float | None],
        *,
        batch_rows: int,
        streams: int,
    ) -> None:
        self._classify, self._readers, self._betas = classify, readers, betas
        self._batch_rows, self._streams = batch_rows, streams

    def run(self, works: Iterable[Work], on_images: OnImages) -> Iterator[Finished]:
        """Each work's shard, in order; the next ones are under way while one is written."""
        with ExitStack() as stack:
            runners = stack.enter_context(ThreadPoolExecutor(self._streams, "engine"))
            # Where the caller stops, what waits is dropped and what runs is waited for.
            stack.callback(runners.shutdown, wait=False, cancel_futures=True)
            running: deque[Future[None] | Finished] = deque()
            for work in works:
                for batch in self._batches(work, on_images):
                    running.append(runners.submit(self._run, batch))
                    yield from self._done(running, self._streams + 1)
                running.append(Finished(work.number, work.shard))
            yield from self._done(running, 0)

    def _done(self, running: deque[Future[None] | Finished], most: int) -> Iterator[Finished]:
        """Takes from the front until at most so many batches run, and shards whose batches are all done."""
        while running and (
            isinstance(running[0], Finished)
            or running[0].done()
            or sum(isinstance(one, Future) for one in running) > most
        ):
            first = running.popleft()
            if isinstance(first, Finished):
                yield first
            else:
                first.result()

    def _batches(self, work: Work, on_images: OnImages) -> Iterator[_Batch]:
        batch = _Batch(work.shard)
        for row, item, read in self._read_all(work.items):
            betas = self._betas if item.beta is None else [item.beta]
            for at, beta in enumerate(betas, start=row):
                _name(work.shard, at, item, read, beta)
                if read.pixels is not None:
                    batch.at.append(at)
                    batch.pixels.append(read.pixels)
                    batch.betas.append(0.0 if beta is None else beta)
                if len(batch.at) == self._batch_rows:
                    yield batch
                    batch = _Batch(work.shard)
            on_images(1, 0 if read.error_code is None else 1)
        if batch.at:
            yield batch

    def _read_all(self, items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item, Read]]:
        """Every image in order, while as many as a batch are decoded ahead."""
        readers = self._readers
        chunk = 1 if readers.is_sequential else min(CHUNK, self._batch_rows)
        ahead = 2 * readers.count if readers.is_sequential else max(-(-self._batch_rows // chunk), 2 * readers.count)
        decoding: deque[tuple[list[tuple[int, Item]], Future[list[Read]]]] = deque()
        remaining = iter(items)
        while True:
            some = list(islice(remaining, chunk))
            if some:
                decoding.append((some, readers.submit([item for _, item in some])))
            while decoding and (not some or len(decoding) > ahead):
                done, future = decoding.popleft()
                for (row, item), read in zip(done, future.result(), strict=True):
                    yield row, item, read
            if not some:
                return

    def _run(self, batch: _Batch) -> None:
        failed = self._fill(batch.shard, batch.at, np.stack(batch.pixels), batch.betas)
        if failed == len(batch.at) > 1:
            raise JobError(f"the engine fails on every image of a batch of {failed}; the log has its words")

    def _fill(self, shard: Shard, at: list[int], pixels: NDArray[np.uint8], betas: list[float]) -> int:
        """The rows, or where the engine fails their halves; how many rows it failed on alone, which are errors."""
        try:
            shard.fill(at, self._classify(pixels, betas))
        except JobError:
            raise
        except Exception as error:  # noqa: BLE001 - the runtimes' exceptions have no common base
            if len(at) == 1:
                logger.error("the engine failed on an image alone: %s", error)
                shard.error_codes[at[0]], shard.errors[at[0]] = INFERENCE_FAILED, "the engine failed on this image"
                return 1
            half = len(at) // 2
            return self._fill(shard, at[:half], pixels[:half], betas[:half]) + self._fill(
                shard, at[half:], pixels[half:], betas[half:]
            )
        return 0


def _name(shard: Shard, at: int, item: Item, read: Read, beta: float | None) -> None:
    shard.ids[at], shard.paths[at] = _printable(item.id), _printable(item.path)
    shard.sha256[at], shard.betas[at] = read.sha256, beta
    shard.error_codes[at], shard.errors[at] = read.error_code, read.error


def _printable(name: str) -> str:
    """A file's name as UTF-8 can hold it; names of files may be any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
