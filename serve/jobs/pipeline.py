"""Images in, shards out: reading and decoding on threads, beside them the engine, all windows bounded.

A batch never holds rows of two shards, and its rows follow the listing: a shard that is made again is the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from serve.jobs.errors import JobError, UnreadableError
from serve.jobs.inputs import Item, Source
from serve.jobs.shard import Shard
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import Pixels, pixels_from_bytes
from tureen.soup import Soup

logger = logging.getLogger("tureen.jobs")

CODES: dict[type[ImageError], str] = {  # as the server answers them
    EmptyImageError: "empty_image",
    UndecodableImageError: "undecodable_image",
    UnsupportedImageTypeError: "unsupported_image_type",
    ImageTooLargeError: "image_too_large",
    UnreadableError: "unreadable_image",
}
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
class _Read:
    sha256: str | None
    pixels: Pixels | None
    error: ImageError | None = None


@dataclass
class _Batch:
    shard: Shard
    at: list[int] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)


class Pipeline:
    """Classifies the images of a source on a soup.

    betas: of each image, None alone where the model has one token; an item's own takes their place.
    batch_rows: rows in a run of the engine. on_images: told of images done and of those among them that failed.
    """

    def __init__(
        self,
        soup: Soup,
        source: Source,
        betas: Sequence[float | None],
        *,
        batch_rows: int,
        streams: int,
        decode_threads: int,
        jpeg_scaling: bool = False,
        on_images: Callable[[int, int], None] = lambda done, failed: None,
    ) -> None:
        self._soup, self._source, self._betas = soup, source, betas
        self._batch_rows, self._streams, self._decode_threads = batch_rows, streams, decode_threads
        self._jpeg_scaling, self._on_images = jpeg_scaling, on_images

    def run(self, works: Iterable[Work]) -> Iterator[Finished]:
        """Each work's shard, in order; the next ones are under way while one is written."""
        with ExitStack() as stack:
            decoders = stack.enter_context(ThreadPoolExecutor(self._decode_threads, "decode"))
            runners = stack.enter_context(ThreadPoolExecutor(self._streams, "engine"))
            # Where the caller stops, what waits is dropped and what runs is waited for.
            stack.callback(runners.shutdown, wait=False, cancel_futures=True)
            stack.callback(decoders.shutdown, wait=False, cancel_futures=True)
            running: deque[Future[None] | Finished] = deque()
            for work in works:
                for batch in self._batches(work, decoders):
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

    def _batches(self, work: Work, decoders: ThreadPoolExecutor) -> Iterator[_Batch]:
        batch = _Batch(work.shard)
        for row, item, read in self._read_all(work.items, decoders):
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
            self._on_images(1, 0 if read.error is None else 1)
        if batch.at:
            yield batch

    def _read_all(
        self, items: Iterable[tuple[int, Item]], decoders: ThreadPoolExecutor
    ) -> Iterator[tuple[int, Item, _Read]]:
        """Every image in order, while as many as a batch are decoded ahead."""
        is_sequential = self._source.is_sequential
        chunk = 1 if is_sequential else min(CHUNK, self._batch_rows)
        ahead = (
            2 * self._decode_threads if is_sequential else max(-(-self._batch_rows // chunk), 2 * self._decode_threads)
        )
        decoding: deque[tuple[list[tuple[int, Item]], Future[list[_Read]]]] = deque()
        remaining = iter(items)
        while True:
            some = list(islice(remaining, chunk))
            if some:
                given = [self._bytes(item) if is_sequential else item for _, item in some]
                decoding.append((some, decoders.submit(self._read_some, given)))
            while decoding and (not some or len(decoding) > ahead):
                done, future = decoding.popleft()
                for (row, item), read in zip(done, future.result(), strict=True):
                    yield row, item, read
            if not some:
                return

    def _read_some(self, given: Sequence[Item | bytes | ImageError]) -> list[_Read]:
        return [self._read(one) for one in given]

    def _bytes(self, item: Item) -> bytes | ImageError:
        try:
            return self._source.read(item, self._soup.limits.max_image_bytes)
        except ImageError as error:
            return error

    def _read(self, given: Item | bytes | ImageError) -> _Read:
        data = self._bytes(given) if isinstance(given, Item) else given
        if isinstance(data, ImageError):
            return _Read(None, None, data)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            spec = self._soup.bundle.manifest.preprocess
            return _Read(sha256, pixels_from_bytes(data, spec, self._soup.limits, jpeg_scaling=self._jpeg_scaling))
        except ImageError as error:
            return _Read(sha256, None, error)

    def _run(self, batch: _Batch) -> None:
        failed = self._fill(batch.shard, batch.at, np.stack(batch.pixels), batch.betas)
        if failed == len(batch.at) > 1:
            raise JobError(f"the engine fails on every image of a batch of {failed}; the log has its words")

    def _fill(self, shard: Shard, at: list[int], pixels: NDArray[np.uint8], betas: list[float]) -> int:
        """The rows, or where the engine fails their halves; how many rows it failed on alone, which are errors."""
        try:
            shard.fill(at, self._soup.logits(pixels, betas))
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


def _name(shard: Shard, at: int, item: Item, read: _Read, beta: float | None) -> None:
    shard.ids[at], shard.paths[at] = _printable(item.id), _printable(item.path)
    shard.sha256[at], shard.betas[at] = read.sha256, beta
    error = read.error
    shard.error_codes[at] = None if error is None else next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    shard.errors[at] = None if error is None else str(error)


def _printable(name: str) -> str:
    """A file's name as UTF-8 can hold it; names of files may be any bytes."""
    return name.encode("utf-8", "replace").decode()
