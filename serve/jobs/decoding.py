"""Images read and decoded several at a time, on threads, or in processes that stand behind whatever else runs here."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

from serve.errors import InputError, JobError, UnreadableError
from serve.jobs.image_source import Item, Source
from serve.jobs.input_sources import open_source
from serve.jobs.rooted_files import Files
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import ImageLimits, Pixels, PreprocessSpec, pixels_from_bytes

CODES: dict[type[ImageError], str] = {  # as the server answers them
    EmptyImageError: "empty_image",
    UndecodableImageError: "undecodable_image",
    UnsupportedImageTypeError: "unsupported_image_type",
    ImageTooLargeError: "image_too_large",
    UnreadableError: "unreadable_image",
}
NICE = 19  # the least that a process can ask of the scheduler
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@dataclass(frozen=True)
class Read:
    """What became of an image's bytes: their SHA-256, and pixels of the model's size or an error's code and words."""

    sha256: str | None
    pixels: Pixels | None
    error_code: str | None = None
    error: str | None = None


Given = Item | bytes | Read
"""An image to read, one whose bytes are there, or one that could not be read."""


@dataclass(frozen=True)
class Decoding:
    """How the images of a job become pixels."""

    preprocess: PreprocessSpec
    limits: ImageLimits
    jpeg_scaling: bool


class Reader:
    """Reads and decodes in the thread that calls it."""

    def __init__(self, source: Source, decoding: Decoding) -> None:
        self.source, self._decoding = source, decoding

    def bytes_of(self, item: Item) -> bytes | Read:
        try:
            return self.source.read(item, self._decoding.limits.max_image_bytes)
        except ImageError as error:
            return _failed(None, error)

    def read(self, given: Given) -> Read:
        data = self.bytes_of(given) if isinstance(given, Item) else given
        if isinstance(data, Read):
            return data
        sha256, how = hashlib.sha256(data).hexdigest(), self._decoding
        try:
            pixels = pixels_from_bytes(data, how.preprocess, how.limits, jpeg_scaling=how.jpeg_scaling)
            return Read(sha256, pixels)
        except ImageError as error:
            return _failed(sha256, error)

    def read_some(self, given: Sequence[Given]) -> list[Read]:
        return [self.read(one) for one in given]


class Readers:
    """Several readers; made by `on_threads` or `in_processes`."""

    def __init__(
        self, reader: Reader, executor: Executor, read_some: Callable[[Sequence[Given]], list[Read]], count: int
    ) -> None:
        self._reader, self._executor, self._read_some, self.count = reader, executor, read_some, count
        self.is_sequential = reader.source.is_sequential

    def submit(self, items: Sequence[Item]) -> Future[list[Read]]:
        """One Read for each; a source that is read from front to back is read here and now, in the caller's order."""
        given = [self._reader.bytes_of(item) for item in items] if self.is_sequential else items
        return self._executor.submit(self._read_some, given)


@contextmanager
def on_threads(source: Source, decoding: Decoding, count: int) -> Iterator[Readers]:
    """Readers that share the process with the engine."""
    reader = Reader(source, decoding)
    executor = ThreadPoolExecutor(count, "decode")
    try:
        yield Readers(reader, executor, reader.read_some, count)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def in_processes(given: str, files: Files, source: Source, decoding: Decoding, count: int) -> Iterator[Readers]:
    """Readers that take neither the interpreter nor, while others want it, a processor from whoever answers requests.

    given, files: as the source was opened, which each opens for itself.
    """
    executor = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_begin,
        initargs=(given, files, decoding, os.getpid()),
    )
    try:
        yield Readers(Reader(source, decoding), executor, _Background.read_some, count)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Background:
    """The reader of this process, where it is one of `in_processes`."""

    reader: ClassVar[Reader | None] = None
    error = ""  # why there is none

    @classmethod
    def read_some(cls, given: Sequence[Given]) -> list[Read]:
        if cls.reader is None:
            raise InputError(cls.error)
        return cls.reader.read_some(given)


def _begin(given: str, files: Files, decoding: Decoding, parent: int) -> None:
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)  # a terminal's and a service manager's are for the server
    with suppress(OSError):  # a sandbox may forbid either
        os.nice(NICE)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # a processor that it has counts as a free one
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    try:
        _Background.reader = Reader(open_source(given, files), decoding)
    except JobError as error:  # raised here it would be a traceback in the log
        _Background.error = str(error)


def _failed(sha256: str | None, error: ImageError) -> Read:
    code = next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    return Read(sha256, None, code, str(error))
