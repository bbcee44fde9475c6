"""Decodes small images in groups on threads, and other images in processes of lower priority.

`tureen.image_cost.ImageKind` divides images by their cost into small, large and disproportionate ones. Each kind has
separate decoders. So a costly image takes no decoder, interpreter lock or CPU from a cheaper image. Knows nothing about
HTTP or engines.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from serve.errors import DeadlineError, DecodingError
from serve.inference.decode_process import DecodeOptions, DecodeProcess, DecodeProcessEndedError
from tureen.errors import ImageError
from tureen.image_cost import ImageCost, ImageKind
from tureen.preprocess import Pixels

LARGE_NICE = 10  # a tenth of the weight of a server thread: decoding also progresses on a busy machine
DISPROPORTIONATE_NICE = 19  # a seventh of the weight of LARGE_NICE
GROUP_WEIGHT = 65_536  # of the images in one group, which take a millisecond or two
IDLE_S = 60.0  # processes end after this time without an image of their kind, which frees their memory

logger = logging.getLogger("tureen.serve")

Decoded = tuple[Pixels, float, float]
"""The pixels, the start of the decoding (time.monotonic), and the duration of the decoding in seconds."""


class Decoders:
    """The threads and processes that decode images. A process starts when an image first needs it."""

    def __init__(
        self,
        threads: int,
        processes: int,
        *,
        max_memory: int,
        on_decoded: Callable[[ImageCost, float], None] = lambda cost, seconds: None,
    ) -> None:
        """threads: number of threads for small images. processes: maximum number of processes for large images.

        One further process decodes the disproportionate images. max_memory: bytes that all images of one kind may take
        in processes; further images wait. on_decoded: called in the event loop with the cost and the seconds of each
        decoding, even if it failed.
        """
        self._threads = _Threads(threads)
        self._processes = {
            ImageKind.LARGE: _Processes(processes, LARGE_NICE, max_memory),
            ImageKind.DISPROPORTIONATE: _Processes(1, DISPROPORTIONATE_NICE, max_memory),
        }
        self._on_decoded = on_decoded

    async def decode(self, image: bytes, cost: ImageCost, decoding: DecodeOptions, deadline_s: float) -> Decoded:
        """Returns the pixels of an image and the timing of the decoding.

        cost: of the image; its kind selects the decoders. deadline_s: in the clock of time.monotonic. A decoding in a
        process stops at the deadline, or when the caller is cancelled.
        Raises an ImageError if the image is damaged, unsupported or too large, DeadlineError after the deadline, and
        DecodingError if a process could not start or ended during the decoding.
        """
        if cost.kind is ImageKind.SMALL:
            result, began_s, seconds = await self._threads.decode(_SmallImage(image, cost.work, decoding, deadline_s))
        else:
            processes = self._processes[cost.kind]
            result, began_s, seconds = await processes.decode(image, cost.memory, decoding, deadline_s)
        self._on_decoded(cost, seconds)
        if isinstance(result, ImageError):
            raise result
        return result, began_s, seconds

    async def close(self) -> None:
        """Frees threads and processes. Requires that no image is being decoded."""
        self._threads.close()
        await asyncio.gather(*(processes.close() for processes in self._processes.values()))


_Result = tuple[Pixels | ImageError, float, float]


@dataclass(frozen=True)
class _SmallImage:
    """An image that waits for a thread. work: as in `ImageCost`."""

    image: bytes
    work: int
    decoding: DecodeOptions
    deadline_s: float

    @property
    def weight(self) -> int:
        """The work, or the number of bytes if it is larger: a small image may have megabytes of comments."""
        return max(self.work, len(self.image))

    def decode(self) -> _Result | Exception:
        began_s = time.monotonic()
        if began_s > self.deadline_s:
            return DeadlineError()
        try:
            result = _pixels_or_error(lambda: self.decoding.pixels(self.image))
        except Exception as error:  # noqa: BLE001 - it must not harm the other images of the group
            return error
        return result, began_s, time.monotonic() - began_s


_Group = Sequence[tuple[_SmallImage, asyncio.Future[_Result]]]


class _Threads:
    """A pool of threads that decode small images. While all threads are busy, images gather for the next group.

    The images of a group are decoded in one call, by one thread. So small images that arrive together do not each wait
    for a thread, which would cost more than decoding one. A group weighs at most GROUP_WEIGHT, or is a single image.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._idle = count
        self._waiting: deque[tuple[_SmallImage, asyncio.Future[_Result]]] = deque()

    async def decode(self, image: _SmallImage) -> _Result:
        decoded: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, decoded))
        self._start()
        return await decoded

    def close(self) -> None:
        self._threads.shutdown()

    def _start(self) -> None:
        while self._idle and (group := self._next_group()):
            images = [image for image, _ in group]
            try:
                running = asyncio.get_running_loop().run_in_executor(self._threads, _decode_all, images)
            except RuntimeError as error:
                logger.error("a decoding thread did not start: %s", error)
                _deliver(group, [DecodingError() for _ in group])
                continue
            self._idle -= 1
            running.add_done_callback(partial(self._end, group))

    def _next_group(self) -> list[tuple[_SmallImage, asyncio.Future[_Result]]]:
        group: list[tuple[_SmallImage, asyncio.Future[_Result]]] = []
        weight = 0
        while self._waiting:
            image, decoded = self._waiting[0]
            if not decoded.done():  # else the caller was cancelled
                weight += image.weight
                if group and weight > GROUP_WEIGHT:
                    break
                group.append((image, decoded))
            self._waiting.popleft()
        return group

    def _end(self, group: _Group, running: asyncio.Future[list[_Result | Exception]]) -> None:
        self._idle += 1
        self._start()
        _deliver(group, running.result())


def _deliver(group: _Group, results: Sequence[_Result | Exception]) -> None:
    for (_, decoded), result in zip(group, results, strict=True):
        if decoded.done():
            continue
        if isinstance(result, Exception):
            decoded.set_exception(result)
        else:
            decoded.set_result(result)


def _decode_all(images: Sequence[_SmallImage]) -> list[_Result | Exception]:
    return [image.decode() for image in images]


def _pixels_or_error(decode: Callable[[], Pixels]) -> Pixels | ImageError:
    try:
        return decode()
    except ImageError as error:
        return error


class _DecodeTask:
    """The decoding of one image in a process. Any thread may call `stop`, before, during or after the decoding."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: DecodeProcess | None = None
        self.is_stopped = False

    def begin(self, process: DecodeProcess) -> None:
        with self._lock:
            self._process = process
            if self.is_stopped:
                process.kill()

    def end(self) -> None:
        with self._lock:
            self._process = None

    def stop(self) -> None:
        with self._lock:
            self.is_stopped = True
            if self._process is not None:
                self._process.kill()


class _Processes:
    """A pool of at most `count` decoding processes, with a first-in, first-out queue of images.

    The first image of the queue starts when a process is free and the pool has enough memory left for the image. An
    image that needs more than all the memory starts when no other image is being decoded.
    """

    def __init__(self, count: int, nice: int, max_memory: int) -> None:
        self._count, self._nice, self._max_memory = count, nice, max_memory
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode-process")
        self._idle: list[DecodeProcess] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._running = self._memory = 0
        self._idle_timer: asyncio.TimerHandle | None = None

    async def decode(self, image: bytes, memory: int, decoding: DecodeOptions, deadline_s: float) -> _Result:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await self._acquire(memory)
                return await self._run(image, memory, decoding)
        except TimeoutError:
            raise DeadlineError from None

    async def close(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._end_idle()
        await asyncio.to_thread(self._threads.shutdown)

    async def _acquire(self, memory: int) -> None:
        acquired: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((memory, acquired))
        self._start_next()
        try:
            await acquired
        except asyncio.CancelledError:
            if acquired.done() and not acquired.cancelled():  # cancelled after _start_next gave it a process
                self._release(memory)
            raise

    def _start_next(self) -> None:
        while self._waiting:
            memory, acquired = self._waiting[0]
            if not acquired.done():
                is_full = self._running and self._memory + memory > self._max_memory
                if self._running == self._count or is_full:
                    return
                self._running += 1
                self._memory += memory
                acquired.set_result(None)
            self._waiting.popleft()

    def _release(self, memory: int) -> None:
        self._running -= 1
        self._memory -= memory
        self._start_next()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    async def _run(self, image: bytes, memory: int, decoding: DecodeOptions) -> _Result:
        task = _DecodeTask()
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, self._decode_on_thread, task, image, decoding
        )

        def end(future: asyncio.Future[_Result]) -> None:
            self._release(memory)
            if not future.cancelled():
                future.exception()  # marks it as retrieved, also if the request was cancelled

        running.add_done_callback(end)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            task.stop()
            raise

    def _decode_on_thread(self, task: _DecodeTask, image: bytes, decoding: DecodeOptions) -> _Result:
        """Decodes an image in a process while the calling thread waits. Returns pixels or error, and the timing.

        Raises DecodingError if the process ends before it replies, or cannot start.
        """
        began_s = time.monotonic()
        try:
            result = self._decode_in_some_process(task, image, decoding)
        except OSError as error:
            logger.error("a decoding process did not start: %s", error)
            raise DecodingError from None
        except DecodeProcessEndedError:
            if not task.is_stopped:
                logger.warning("a decoding process ended during an image; the system may be out of memory")
            raise DecodingError from None
        return result, began_s, time.monotonic() - began_s

    def _decode_in_some_process(self, task: _DecodeTask, image: bytes, decoding: DecodeOptions) -> Pixels | ImageError:
        """Decodes an image in an idle process, or in a new process if none is idle.

        The system may have ended the idle process when memory ran out. Then decodes in a new one. Raises
        DecodeProcessEndedError if the new process ends too, and OSError if it cannot start.
        """
        with suppress(IndexError):  # none is idle; other threads take processes concurrently
            idle = self._idle.pop()
            try:
                return self._decode_in(idle, task, image, decoding)
            except DecodeProcessEndedError:
                if task.is_stopped:
                    raise
        return self._decode_in(DecodeProcess(self._nice), task, image, decoding)

    def _decode_in(
        self, process: DecodeProcess, task: _DecodeTask, image: bytes, decoding: DecodeOptions
    ) -> Pixels | ImageError:
        """Decodes an image in `process`. Keeps the process for a later image, or closes it if it ended or was stopped.

        Raises DecodeProcessEndedError if the process ends before it replies.
        """
        is_reusable = False
        task.begin(process)
        try:
            result = _pixels_or_error(lambda: process.decode(image, decoding))
            is_reusable = not task.is_stopped
        finally:
            task.end()
            if is_reusable:
                self._idle.append(process)
            else:
                process.close()
        return result

    def _end_idle(self) -> None:
        with suppress(IndexError):  # empty: threads take and return processes concurrently
            while True:
                self._threads.submit(self._idle.pop().close)
