"""Where images are decoded: small ones on threads, large and disproportionate ones in processes of lower priorities.

Each kind has decoders for itself. So no image takes a decoder, the interpreter's lock or a busy processor from an image
of a kind before it. Knows nothing about HTTP or engines.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from serve.errors import DeadlineError, DecodingError
from serve.inference.decode_process import DecodeOptions, DecodeProcess, DecodeProcessEndedError
from tureen.errors import ImageError
from tureen.image_cost import ImageCost, ImageKind
from tureen.preprocess import Pixels

LARGE_NICE = 10  # a tenth of the weight of a thread of the server, so that an image is also decoded on a busy machine
DISPROPORTIONATE_NICE = 19  # a seventh of that again
IDLE_S = 60.0  # without an image of their kind: then the processes end and free their memory

logger = logging.getLogger("tureen.serve")

Decoded = tuple[Pixels, float, float]
"""Pixels, when decoding began (time.monotonic), and the seconds it took."""


class Decoders:
    """Threads and processes that decode. The processes start with the first images that need them."""

    def __init__(
        self,
        threads: int,
        processes: int,
        *,
        max_memory: int,
        on_decoded: Callable[[ImageCost, float], None] = lambda cost, seconds: None,
    ) -> None:
        """threads: for small images. processes: for large ones. One process more decodes the disproportionate ones.

        max_memory: bytes that all large images in processes hold; others wait.
        on_decoded: called in the loop with the cost and the seconds of each decoding, failed ones too.
        """
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._processes = {
            ImageKind.LARGE: _Processes(processes, LARGE_NICE, max_memory),
            ImageKind.DISPROPORTIONATE: _Processes(1, DISPROPORTIONATE_NICE, max_memory),
        }
        self._on_decoded = on_decoded

    async def decode(self, image: bytes, cost: ImageCost, decoding: DecodeOptions, deadline_s: float) -> Decoded:
        """Raises an ImageError; DeadlineError where the time limit passes first; DecodingError where a process ended.

        A decoding in a process is stopped where the caller is cancelled or the time limit passes.
        """
        if cost.kind is ImageKind.SMALL:
            work = asyncio.get_running_loop().run_in_executor(self._threads, _on_thread, image, decoding, deadline_s)
        else:
            work = self._processes[cost.kind].decode(image, cost.memory, decoding, deadline_s)  # type: ignore[assignment]
        result, began_s, seconds = await work
        self._on_decoded(cost, seconds)
        if isinstance(result, ImageError):
            raise result
        return result, began_s, seconds

    async def close(self) -> None:
        """Free threads and processes; called once nothing is being decoded."""
        self._threads.shutdown()
        await asyncio.gather(*(processes.close() for processes in self._processes.values()))


_Result = tuple[Pixels | ImageError, float, float]


def _on_thread(image: bytes, decoding: DecodeOptions, deadline_s: float) -> _Result:
    began_s = time.monotonic()
    if began_s > deadline_s:
        raise DeadlineError
    result = _pixels_or_error(lambda: decoding.pixels(image))
    return result, began_s, time.monotonic() - began_s


def _pixels_or_error(decode: Callable[[], Pixels]) -> Pixels | ImageError:
    try:
        return decode()
    except ImageError as error:
        return error


class _Job:
    """One image in a process; `stop` may come before, during and after it."""

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
    """So many processes, first come, first served; an image begins once its memory is free, or where it is alone."""

    def __init__(self, count: int, nice: int, max_memory: int) -> None:
        self._count, self._nice, self._max_memory = count, nice, max_memory
        self._callers = ThreadPoolExecutor(count, thread_name_prefix="decode-process")
        self._idle: list[DecodeProcess] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._running = self._memory = 0
        self._ending: asyncio.TimerHandle | None = None

    async def decode(self, image: bytes, memory: int, decoding: DecodeOptions, deadline_s: float) -> _Result:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await self._turn(memory)
                return await self._run(image, memory, decoding)
        except TimeoutError:
            raise DeadlineError from None

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._end_idle()
        await asyncio.to_thread(self._callers.shutdown)

    async def _turn(self, memory: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((memory, turn))
        self._start_next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # cancelled with the turn already given
                self._release(memory)
            raise

    def _start_next(self) -> None:
        while self._waiting:
            memory, turn = self._waiting[0]
            if not turn.done():
                is_full = self._running and self._memory + memory > self._max_memory
                if self._running == self._count or is_full:
                    return
                self._running += 1
                self._memory += memory
                turn.set_result(None)
            self._waiting.popleft()

    def _release(self, memory: int) -> None:
        self._running -= 1
        self._memory -= memory
        self._start_next()
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    async def _run(self, image: bytes, memory: int, decoding: DecodeOptions) -> _Result:
        job = _Job()
        running = asyncio.get_running_loop().run_in_executor(self._callers, self._on_caller, job, image, decoding)

        def ended(future: asyncio.Future[_Result]) -> None:
            self._release(memory)
            if not future.cancelled():
                future.exception()  # seen, also where the request is gone

        running.add_done_callback(ended)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            job.stop()
            raise

    def _on_caller(self, job: _Job, image: bytes, decoding: DecodeOptions) -> _Result:
        """On a thread of its own, which waits for the process."""
        began_s, is_sound = time.monotonic(), False
        try:
            process = self._idle_process() or DecodeProcess(self._nice)
        except OSError as error:
            logger.error("a process for decoding cannot be started: %s", error)
            raise DecodingError from None
        job.begin(process)
        try:
            result = _pixels_or_error(lambda: process.decode(image, decoding))
            is_sound = not job.is_stopped
        except DecodeProcessEndedError:
            if not job.is_stopped:
                logger.warning("a process that decoded an image ended, for want of memory perhaps")
            raise DecodingError from None
        finally:
            job.end()
            if is_sound:
                self._idle.append(process)
            else:
                process.close()
        return result, began_s, time.monotonic() - began_s

    def _idle_process(self) -> DecodeProcess | None:
        """One that still runs. Where memory runs out, the system ends idle ones too."""
        with suppress(IndexError):  # other threads take meanwhile
            while True:
                process = self._idle.pop()
                if process.is_running:
                    return process
                process.close()
        return None

    def _end_idle(self) -> None:
        with suppress(IndexError):  # threads take and give back meanwhile
            while True:
                self._callers.submit(self._idle.pop().close)
