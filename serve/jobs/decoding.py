"""Reads and decodes images in parallel: on threads, or in processes of the lowest priority."""

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
from serve.inference.decode_process import DecodeOptions
from serve.jobs.image_source import ImageSource, InputImage
from serve.jobs.input_sources import open_source
from serve.jobs.rooted_files import Files
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import Pixels

ERROR_CODES: dict[type[ImageError], str] = {  # the codes of the server's HTTP responses
    EmptyImageError: "empty_image",
    UndecodableImageError: "undecodable_image",
    UnsupportedImageTypeError: "unsupported_image_type",
    ImageTooLargeError: "image_too_large",
    UnreadableError: "unreadable_image",
}
TASK_BYTES = 1 << 20  # of the images that one task of a sequential source decodes
NICE = 19  # the lowest priority that a process can request
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@dataclass(frozen=True)
class DecodeResult:
    """The SHA-256 of an image's bytes, and either pixels of the model's size or an error code and message.

    sha256: hexadecimal; None if the bytes could not be read. pixels: uint8 (H, W, 3); None after an error. error_code:
    stable identifier, as in HTTP responses. error: message.
    """

    sha256: str | None
    pixels: Pixels | None
    error_code: str | None = None
    error: str | None = None


DecodeInput = InputImage | bytes | DecodeResult
"""An image that is not read yet, the bytes of an image, or the error result of an image that could not be read."""


class ImageReader:
    """Reads and decodes images on the calling thread."""

    def __init__(self, source: ImageSource, options: DecodeOptions) -> None:
        self.source, self._options = source, options

    def read_bytes(self, image: InputImage) -> bytes | DecodeResult:
        """Returns the bytes of an image, or a DecodeResult with the error if the bytes cannot be read."""
        try:
            return self.source.read(image, self._options.limits.max_image_bytes)
        except ImageError as error:
            return _error_result(None, error)

    def decode(self, given: DecodeInput) -> DecodeResult:
        """Returns the pixels or the error of one image. Reads the image first if its bytes are not given."""
        data = self.read_bytes(given) if isinstance(given, InputImage) else given
        if isinstance(data, DecodeResult):
            return data
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return DecodeResult(sha256, self._options.pixels(data))
        except ImageError as error:
            return _error_result(sha256, error)

    def decode_many(self, given: Sequence[DecodeInput]) -> list[DecodeResult]:
        """Returns one result per image, in order."""
        return [self.decode(one) for one in given]


class DecodePool:
    """Threads or processes that read and decode images. `decode_in_threads` and `decode_in_processes` open a pool.

    count: number of threads or processes. is_sequential: whether images must be read in the order of the listing.
    """

    def __init__(
        self,
        reader: ImageReader,
        executor: Executor,
        decode_many: Callable[[Sequence[DecodeInput]], list[DecodeResult]],
        count: int,
    ) -> None:
        self._reader, self._executor, self._decode_many, self.count = reader, executor, decode_many, count
        self.is_sequential = reader.source.is_sequential

    def submit(self, images: Sequence[InputImage]) -> tuple[int, Future[list[DecodeResult]]]:
        """Schedules the decoding of the first of some images. Returns their number, and a future of their results.

        If the source is sequential, reads the bytes on the calling thread, so that reads keep their order. Then these
        are the first images that have TASK_BYTES bytes together, to bound the memory. Otherwise these are all images.
        """
        if not self.is_sequential:
            return len(images), self._executor.submit(self._decode_many, images)
        given: list[bytes | DecodeResult] = []
        size = 0
        for image in images:
            given.append(self._reader.read_bytes(image))
            size += len(given[-1]) if isinstance(given[-1], bytes) else 0
            if size >= TASK_BYTES:
                break
        return len(given), self._executor.submit(self._decode_many, given)


@contextmanager
def decode_in_threads(source: ImageSource, options: DecodeOptions, count: int) -> Iterator[DecodePool]:
    """Yields a pool of `count` threads in this process, which decode while the engine runs. Closes it in the end."""
    reader = ImageReader(source, options)
    executor = ThreadPoolExecutor(count, "decode")
    try:
        yield DecodePool(reader, executor, reader.decode_many, count)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def decode_in_processes(
    input_path: str, files: Files, source: ImageSource, options: DecodeOptions, count: int
) -> Iterator[DecodePool]:
    """Yields a pool of `count` processes of the lowest priority, which do not delay the requests of a server.

    input_path, files: the arguments of `open_source` that returned `source`. Each process opens its own source with
    these arguments. Closes the pool in the end.
    """
    executor = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_initialize_process,
        initargs=(input_path, files, options, os.getpid()),
    )
    try:
        yield DecodePool(ImageReader(source, options), executor, _ProcessReader.decode_many, count)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _ProcessReader:
    """Holds the ImageReader of one process of `decode_in_processes`."""

    reader: ClassVar[ImageReader | None] = None
    error = ""  # why the source could not be opened

    @classmethod
    def decode_many(cls, given: Sequence[DecodeInput]) -> list[DecodeResult]:
        if cls.reader is None:
            raise InputError(cls.error)
        return cls.reader.decode_many(given)


def _initialize_process(input_path: str, files: Files, options: DecodeOptions, parent: int) -> None:
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)  # a terminal or service manager sends these for the server
    lower_priority(0)
    end_with_parent(parent)
    try:
        _ProcessReader.reader = ImageReader(open_source(input_path, files), options)
    except JobError as error:  # an initializer that raises it would only log a traceback
        _ProcessReader.error = str(error)


def lower_priority(thread: int) -> None:
    """Gives a thread the lowest priority. On Linux the scheduler then treats its processor as free.

    thread: id of the thread; 0 is the calling one.
    """
    with suppress(OSError):  # the thread has ended, or a sandbox forbids it
        os.setpriority(os.PRIO_PROCESS, thread, NICE)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def end_with_parent(parent: int) -> None:
    """Makes Linux end this process when the thread that started it ends. parent: id of the process of that thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _error_result(sha256: str | None, error: ImageError) -> DecodeResult:
    code = next(ERROR_CODES[cls] for cls in type(error).__mro__ if cls in ERROR_CODES)
    return DecodeResult(sha256, None, code, str(error))
