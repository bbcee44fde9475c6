"""Gathers concurrent rows into batches and runs the batches on threads. A stream is one of the simultaneous runs.

While every stream is busy, rows gather for the next batch, so no row waits for a timer. `batch_policy` chooses the rows
of a batch. Knows nothing about HTTP, images or models: the caller defines the type of a row and the function that runs
a batch.
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
from serve.inference.batch_policy import BatchParts, Priority, next_batch

Row = TypeVar("Row")
Output = TypeVar("Output")

QUIET_S = 10.0  # without an online row; then background rows use every stream, in longer runs
QUIET_RUN_FACTOR = 10  # how much longer those runs are; the next online row waits for the end of one of them at most

logger = logging.getLogger("tureen.serve")


@dataclass(frozen=True)
class RowResult(Generic[Output]):
    """The output of one row, and the timing of the run that computed it.

    queue_s: seconds of the row in the queue. batch_began_s: start of the run (time.monotonic). inference_s: seconds of
    the run. batch_size: rows in the run.
    """

    output: Output
    queue_s: float
    batch_began_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True, eq=False)
class _QueuedRow(Generic[Row, Output]):
    """A row that waits for a batch. Times are those of time.monotonic.

    arrived_s: when the row was submitted. deadline_s: when its result is no longer useful. future: receives the result.
    """

    row: Row
    priority: Priority
    arrived_s: float
    deadline_s: float
    future: asyncio.Future[RowResult[Output]]

    @property
    def is_abandoned(self) -> bool:
        return self.future.done()


class Batcher(Generic[Row, Output]):
    """Gathers submitted rows into batches and runs them on a pool of threads.

    Completes every row exactly once: with its result or with a ServeError.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Output]],
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
        """run: runs 1 to max_batch rows on a thread of the batcher, and returns one output per row.

        max_waiting: maximum number of rows in the queue. streams: maximum number of simultaneous runs.
        is_idle: returns whether the caller has no request in progress. When this becomes True, the caller must call
        `notify_idle`.
        background_run_s: target duration of a run of background rows, in seconds. While online rows arrive, such a run
        starts only if no other run is active and `is_idle` returns True. After QUIET_S seconds without an online row,
        background rows use every stream, in runs that are QUIET_RUN_FACTOR times as long.


        The callbacks run in the event loop. on_batch: receives the rows and the seconds of each successful run.
        on_dropped: receives a reason, "deadline" or "abandoned", and the number of rows that left the queue for it.
        on_waiting: receives the length of the queue after each change. on_failed: called for each failed run.
        """
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._on_waiting = on_waiting
        self._on_failed = on_failed
        self._background_run_s, self._is_idle = background_run_s, is_idle
        self._background_rows = {False: 1, True: 1}  # rows of a run of the target duration, by is_quiet
        self._last_online_s = -math.inf  # last arrival or completion of an online row
        self._active_runs: Counter[Priority] = Counter()
        self._queue: list[_QueuedRow[Row, Output]] = []
        self._queue_changed = asyncio.Event()
        self._is_closing = False
        self._free_streams = asyncio.Semaphore(streams)
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="inference")
        self._loop_task = asyncio.get_running_loop().create_task(self._run_queue())

    @property
    def waiting(self) -> int:
        """The number of rows in the queue."""
        return len(self._queue)

    async def submit(self, row: Row, *, deadline_s: float, priority: Priority = Priority.ONLINE) -> RowResult[Output]:
        """Queues a row, and returns its result. If the caller is cancelled, the row leaves the queue.

        deadline_s: the row must be in a batch by then (time.monotonic). Raises OverloadedError immediately if the queue
        is full or the batcher is closing. Raises DeadlineError if the row is in no batch at its deadline, and
        InferenceError if the engine failed on this row.
        """
        if self._is_closing or len(self._queue) >= self._max_waiting:
            raise OverloadedError
        future: asyncio.Future[RowResult[Output]] = asyncio.get_running_loop().create_future()
        now_s = time.monotonic()
        if priority is Priority.ONLINE:
            self._last_online_s = now_s
        self._queue.append(_QueuedRow(row, priority, now_s, deadline_s, future))
        self._on_waiting(len(self._queue))
        self._queue_changed.set()
        return await future

    def notify_idle(self) -> None:
        """Makes the batcher check whether background rows can start. Must be called when `is_idle` becomes True."""
        if self._queue:
            self._queue_changed.set()

    async def close(self) -> None:
        """Refuses further rows, completes the queued rows, and frees the threads."""
        self._is_closing = True
        self._queue_changed.set()
        await self._loop_task
        self._threads.shutdown()

    async def _run_queue(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while not (self._is_closing and not self._queue):
                await self._queue_changed.wait()
                self._queue_changed.clear()
                while self._queue:
                    await self._free_streams.acquire()  # first: a batch is formed only when it can run
                    batch, self._queue = self._next_batch(self._queue, self._max_batch, self._max_background_rows())
                    self._on_waiting(len(self._queue))
                    if not batch:  # background rows wait for the end of a run, or the queue is empty
                        self._free_streams.release()
                        break
                    priority = batch[0].priority
                    self._active_runs[priority] += 1
                    tasks.create_task(self._run_batch(batch)).add_done_callback(partial(self._end_run, priority))

    def _end_run(self, priority: Priority, _: asyncio.Task[None]) -> None:
        self._active_runs[priority] -= 1
        if priority is Priority.ONLINE:
            self._last_online_s = time.monotonic()
        self._free_streams.release()
        self._queue_changed.set()

    def _max_background_rows(self) -> int:
        """Returns the largest number of background rows in a run that starts now; 0 if none may start."""
        if self.is_quiet:
            return self._background_rows[True]
        return self._background_rows[False] if self._is_idle() and not self._active_runs.total() else 0

    @property
    def is_quiet(self) -> bool:
        """Whether no online row has arrived or completed in the last QUIET_S seconds. Any thread may read it."""
        return time.monotonic() - self._last_online_s > QUIET_S

    def _next_batch(
        self, rows: Sequence[_QueuedRow[Row, Output]], max_batch: int, max_background: int
    ) -> tuple[list[_QueuedRow[Row, Output]], list[_QueuedRow[Row, Output]]]:
        """Returns the next batch, which may be empty, and the rows that remain queued.

        Completes the rows whose deadline has passed with a DeadlineError.
        """
        decision = next_batch(rows, now_s=time.monotonic(), max_batch=max_batch, max_background=max_background)
        for row in decision.expired:
            row.future.set_exception(DeadlineError())
        for reason, dropped in (("deadline", decision.expired), ("abandoned", decision.abandoned)):
            if dropped:
                self._on_dropped(reason, len(dropped))
        return decision.batch, decision.waiting

    async def _run_batch(self, batch: Sequence[_QueuedRow[Row, Output]]) -> None:
        """Runs the batch and completes its rows. Splits a failed batch into halves, until only single rows fail."""
        parts = BatchParts(batch)
        for part in parts:
            if part is not batch:  # during the failed run, clients may have closed and deadlines passed
                part, _ = self._next_batch(part, len(part), len(part))
            if not part:
                continue
            started = time.monotonic()
            rows = [queued.row for queued in part]
            try:
                outputs = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, rows)
                pairs = list(zip(part, outputs, strict=True))
            except Exception as error:  # engines raise anything; every row must complete
                self._on_failed()
                if parts.halve(part):
                    cause = type(error).__name__
                    logger.warning("a batch of %d failed (%s): running each half separately", len(part), cause)
                    continue
                logger.exception("the engine failed on a single image")
                if not part[0].future.done():
                    part[0].future.set_exception(InferenceError())
            else:
                self._complete(pairs, started)

    def _complete(self, pairs: Sequence[tuple[_QueuedRow[Row, Output], Output]], started: float) -> None:
        seconds, size = time.monotonic() - started, len(pairs)
        if pairs[0][0].priority is Priority.BACKGROUND:
            for is_quiet, factor in ((False, 1), (True, QUIET_RUN_FACTOR)):
                fitting = factor * self._background_run_s * size / max(seconds, 1e-6)
                self._background_rows[is_quiet] = max(1, int(min(fitting, 2 * size, self._max_batch)))
        self._on_batch(size, seconds)
        for queued, output in pairs:
            if not queued.future.done():
                queued.future.set_result(RowResult(output, started - queued.arrived_s, started, seconds, size))
