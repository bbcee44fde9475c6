"""Gathers concurrent rows into batches and runs them on threads of its own, one batch on each stream.

While every stream is busy the next batch gathers, so nobody waits for a timer. Knows nothing about HTTP, images or
models: what a row is and what running means is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from serve.errors import DeadlineError, InferenceError, OverloadedError
from serve.inference.batch_policy import Priority, next_batch

Row = TypeVar("Row")
Result = TypeVar("Result")

QUIET_S = 10.0  # without an online row: then rows that nobody waits for have every stream, for longer runs
QUIET_TIMES = 10  # as long: the first online row after that waits for so much and no more

logger = logging.getLogger("tureen.serve")


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """A row's result, how long it waited for its batch, when that began (time.monotonic), and how long it ran."""

    result: Result
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Row, Result]):
    row: Row
    priority: Priority
    arrived_s: float
    deadline_s: float
    future: asyncio.Future[Answer[Result]]

    @property
    def is_abandoned(self) -> bool:
        return self.future.done()


class Batcher(Generic[Row, Result]):
    """Answers every submitted row exactly once: with its result, or with a ServeError."""

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Result]],
        *,
        max_batch: int,
        max_waiting: int,
        streams: int = 1,
        background_run_s: float = math.inf,
        is_idle: Callable[[], bool] = lambda: True,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_dropped: Callable[[str, int], None] = lambda reason, count: None,
        on_waiting: Callable[[int], None] = lambda count: None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """run: called with 1 to max_batch rows, up to `streams` calls at a time, each on a thread of the batcher's;
        returns as many results.

        background_run_s: how long a run of rows that nobody waits for takes at most, about, while online rows come;
        one such run at a time then, and only where `is_idle`; `wake` has it looked at again. Where none came for
        QUIET_S, they have every stream, and runs QUIET_TIMES as long.
        on_batch: told the size and seconds of each batch that ran. on_dropped: told how many rows left the queue
        unanswered by the engine, and why: "deadline" or "abandoned". on_waiting: told how many rows wait, whenever
        that changed. on_failed: told of each run that failed.
        """
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._on_waiting = on_waiting
        self._on_failed = on_failed
        self._background_run_s, self._is_idle = background_run_s, is_idle
        self._background_rows = {False: 1, True: 1}  # of which a run takes as long, where it is quiet or not
        self._last_online_s = -math.inf  # when an online row came or was answered last
        self._running: Counter[Priority] = Counter()  # runs
        self._queue: list[_Waiting[Row, Result]] = []
        self._changed = asyncio.Event()
        self._is_closing = False
        self._free_streams = asyncio.Semaphore(streams)
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="inference")
        self._loop_task = asyncio.get_running_loop().create_task(self._serve())

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._queue)

    async def submit(self, row: Row, *, deadline_s: float, priority: Priority = Priority.ONLINE) -> Answer[Result]:
        """The row's answer. Whoever stops waiting for it, by cancelling, takes the row out of the queue.

        deadline_s: by when (time.monotonic) the row must be in a batch. Raises OverloadedError at once,
        DeadlineError where the row's turn comes too late, InferenceError where the engine failed on it.
        """
        if self._is_closing or len(self._queue) >= self._max_waiting:
            raise OverloadedError
        future: asyncio.Future[Answer[Result]] = asyncio.get_running_loop().create_future()
        now_s = time.monotonic()
        if priority is Priority.ONLINE:
            self._last_online_s = now_s
        self._queue.append(_Waiting(row, priority, now_s, deadline_s, future))
        self._on_waiting(len(self._queue))
        self._changed.set()
        return await future

    def wake(self) -> None:
        """Look again whether rows that nobody waits for may run."""
        if self._queue:
            self._changed.set()

    async def close(self) -> None:
        """Refuse more rows, answer those that wait, and stop."""
        self._is_closing = True
        self._changed.set()
        await self._loop_task
        self._threads.shutdown()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as running:
            while not (self._is_closing and not self._queue):
                await self._changed.wait()
                self._changed.clear()
                while self._queue:
                    await self._free_streams.acquire()  # nobody is given a place in a batch before it can run
                    batch, self._queue = self._living(self._queue, self._max_batch, self._room_for_background())
                    self._on_waiting(len(self._queue))
                    if not batch:  # what waits does so for a run to end, or for an online row to come
                        self._free_streams.release()
                        break
                    priority = batch[0].priority
                    self._running[priority] += 1
                    running.create_task(self._run_batch(batch)).add_done_callback(partial(self._has_run, priority))

    def _has_run(self, priority: Priority, _: asyncio.Task[None]) -> None:
        self._running[priority] -= 1
        if priority is Priority.ONLINE:
            self._last_online_s = time.monotonic()
        self._free_streams.release()
        self._changed.set()

    def _room_for_background(self) -> int:
        """How many rows that nobody waits for may run now."""
        if self._is_quiet():
            return self._background_rows[True]
        return self._background_rows[False] if self._is_idle() and not self._running.total() else 0

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._last_online_s > QUIET_S

    def _living(
        self, rows: list[_Waiting[Row, Result]], max_batch: int, max_background: int
    ) -> tuple[list[_Waiting[Row, Result]], list[_Waiting[Row, Result]]]:
        """The next batch, which may be empty, and who waits on; those who are in neither are answered."""
        decision = next_batch(rows, now_s=time.monotonic(), max_batch=max_batch, max_background=max_background)
        for row in decision.expired:
            row.future.set_exception(DeadlineError())
        for reason, dropped in (("deadline", decision.expired), ("abandoned", decision.abandoned)):
            if dropped:
                self._on_dropped(reason, len(dropped))
        return decision.batch, decision.waiting

    async def _run_batch(self, batch: list[_Waiting[Row, Result]]) -> None:
        """Run it; where it fails, run each half, and so on, until only the rows that break it have failed."""
        if not batch:
            return
        started = time.monotonic()
        rows = [waiting.row for waiting in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, rows)
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # whatever an engine raises, every member of its batch gets an answer
            self._on_failed()
            if len(batch) > 1:
                logger.warning("a batch of %d failed (%s): each half is run alone", len(batch), type(error).__name__)
                middle = len(batch) // 2
                for half in (batch[:middle], batch[middle:]):
                    await self._run_batch(self._living(half, len(half), len(half))[0])
                return
            logger.exception("the engine failed on an image alone")
            if not batch[0].future.done():
                batch[0].future.set_exception(InferenceError())
            return
        seconds = time.monotonic() - started
        if batch[0].priority is Priority.BATCH:
            for is_quiet, times in ((False, 1), (True, QUIET_TIMES)):
                fitting = times * self._background_run_s * len(rows) / max(seconds, 1e-6)
                self._background_rows[is_quiet] = max(1, int(min(fitting, 2 * len(rows), self._max_batch)))
        self._on_batch(len(rows), seconds)
        for waiting, result in pairs:
            if not waiting.future.done():
                waiting.future.set_result(Answer(result, started - waiting.arrived_s, started, seconds, len(rows)))
