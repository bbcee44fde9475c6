import asyncio
import threading
import time

import pytest

from serve.errors import DeadlineError, InferenceError, OverloadedError
from serve.inference.batch_policy import Priority
from serve.inference.batcher import Batcher
from tests.patience import DEADLINE_S


class Engine:
    """Doubles each row and remembers its batches. A run waits until `gate` is set."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, rows):
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        self.batches.append(list(rows))
        if "poison" in rows:
            raise RuntimeError("kernel failed at 0x7f00")
        return [2 * row for row in rows]


def batching(test, *, max_batch=4, max_waiting=100, **options):
    """Runs an async test with an engine and a batcher, which is closed afterwards."""

    async def run():
        engine = Engine()
        batcher = Batcher(engine.run, max_batch=max_batch, max_waiting=max_waiting, **options)
        try:
            await asyncio.wait_for(test(engine, batcher), 20)
        finally:
            engine.gate.set()
            await batcher.close()

    asyncio.run(run())


async def held(engine, batcher):
    """Submits a first row that occupies the engine until `gate` is set."""
    engine.gate.clear()
    first = asyncio.ensure_future(batcher.submit(0, deadline_s=within(10)))
    await asyncio.to_thread(engine.entered.wait, DEADLINE_S)
    return first


def within(seconds):
    return time.monotonic() + seconds


async def queued(batcher, rows, timeout_ms=10_000, priority=Priority.ONLINE):
    before = batcher.waiting
    tasks = [
        asyncio.ensure_future(batcher.submit(row, deadline_s=within(timeout_ms / 1000), priority=priority))
        for row in rows
    ]
    while batcher.waiting < before + len(rows):
        await asyncio.sleep(0)
    return tasks


def test_every_row_gets_its_result():
    async def test(engine, batcher):
        results = await asyncio.gather(*(batcher.submit(row, deadline_s=within(10)) for row in range(50)))
        assert [result.output for result in results] == [2 * row for row in range(50)]
        assert all(1 <= result.batch_size <= 4 for result in results)

    batching(test)


def test_requests_behind_a_running_batch_form_one_batch_in_order():
    sizes = []

    async def test(engine, batcher):
        first = await held(engine, batcher)
        tasks = await queued(batcher, [1, 2, 3, 4, 5, 6])
        engine.gate.set()
        await asyncio.gather(first, *tasks)
        assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert sizes == [1, 4, 2]

    batching(test, on_batch=lambda size, seconds: sizes.append(size))


def test_a_single_request_does_not_wait_for_others():
    async def test(engine, batcher):
        assert (await batcher.submit(1, deadline_s=within(10))).batch_size == 1

    batching(test)


def test_a_full_queue_refuses_immediately():
    async def test(engine, batcher):
        first = await held(engine, batcher)
        tasks = await queued(batcher, [1, 2])
        with pytest.raises(OverloadedError):
            await batcher.submit(3, deadline_s=within(10))
        engine.gate.set()
        await asyncio.gather(first, *tasks)

    batching(test, max_waiting=2)


def test_a_late_request_fails_and_never_reaches_the_engine():
    dropped = []

    async def test(engine, batcher):
        first = await held(engine, batcher)
        late, *sound = await queued(batcher, [1, 2], timeout_ms=1) + await queued(batcher, [])
        await asyncio.sleep(0.01)
        engine.gate.set()
        await first
        with pytest.raises(DeadlineError):
            await late
        assert all(isinstance(e, DeadlineError) for e in await asyncio.gather(*sound, return_exceptions=True))
        assert engine.batches == [[0]]
        assert dropped == [("deadline", 2)]

    batching(test, on_dropped=lambda reason, count: dropped.append((reason, count)))


def test_a_cancelled_request_is_dropped_before_batching():
    dropped = []

    async def test(engine, batcher):
        first = await held(engine, batcher)
        gone, stays = await queued(batcher, [1, 2])
        gone.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, stays)
        assert engine.batches == [[0], [2]]
        assert dropped == [("abandoned", 1)]

    batching(test, on_dropped=lambda reason, count: dropped.append((reason, count)))


def test_a_row_that_breaks_its_batch_affects_no_other(caplog):
    failed = []

    async def test(engine, batcher):
        first = await held(engine, batcher)
        tasks = await queued(batcher, [1, "poison", 3, 4])
        engine.gate.set()
        await first
        one, poison, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result.output for result in (one, *others)] == [2, 6, 8]
        assert type(poison) is InferenceError
        assert "0x7f00" not in str(poison)
        assert engine.batches == [[0], [1, "poison", 3, 4], [1, "poison"], [1], ["poison"], [3, 4]]

    batching(test, on_failed=lambda: failed.append(True))
    assert len(failed) == 3  # of four, of two, and alone
    assert "kernel failed" in caplog.text  # the log has the cause


def test_late_and_cancelled_rows_of_a_failing_batch_do_not_run_again():
    async def test(engine, batcher):
        first = await held(engine, batcher)
        gone, poison, late, sound = [
            *await queued(batcher, [1, "poison"]),
            *await queued(batcher, [3], timeout_ms=200),
            *await queued(batcher, [4]),
        ]
        engine.gate.set()
        await first
        engine.gate.clear()
        while len(engine.batches) < 1 or batcher.waiting:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.25)
        engine.gate.set()
        results = await asyncio.gather(poison, late, sound, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["InferenceError", "DeadlineError", "RowResult"]
        assert engine.batches[2:] == [["poison"], [4]]

    batching(test)


def test_online_rows_precede_those_of_batch_jobs():
    async def test(engine, batcher):
        first = await held(engine, batcher)
        jobs = await queued(batcher, [1, 2, 3], priority=Priority.BACKGROUND)
        online = await queued(batcher, [4, 5])
        engine.gate.set()
        await asyncio.gather(first, *jobs, *online)
        assert engine.batches == [[0], [4, 5], [1], [2, 3]]

    batching(test)


def test_alone_jobs_have_runs_that_grow_as_long_as_they_are_short_enough():
    async def test(engine, batcher):
        await asyncio.gather(*await queued(batcher, range(1, 12), priority=Priority.BACKGROUND))
        assert [len(batch) for batch in engine.batches] == [1, 2, 4, 4]

    batching(test)


def test_beside_online_rows_jobs_have_one_short_run_at_a_time_and_only_while_no_request_waits():
    is_idle = True

    async def test(engine, batcher):
        nonlocal is_idle
        await batcher.submit(0, deadline_s=within(10))
        await asyncio.gather(*await queued(batcher, [7, 8, 9], priority=Priority.BACKGROUND))
        assert engine.batches == [[0], [7], [8], [9]]
        first = await held(engine, batcher)
        waiting = await queued(batcher, [10], priority=Priority.BACKGROUND)
        await asyncio.sleep(0.05)
        assert batcher.waiting == 1  # though a stream is free
        is_idle = False
        engine.gate.set()
        await first
        await asyncio.sleep(0.05)
        assert batcher.waiting == 1  # because a request may be in decoding
        is_idle = True
        batcher.notify_idle()
        await asyncio.gather(*waiting)

    batching(test, streams=2, background_run_s=1e-9, is_idle=lambda: is_idle)


def test_a_missing_result_fails_the_batch_instead_of_shifting_results():
    async def run():
        batcher = Batcher(lambda rows: rows[1:], max_batch=4, max_waiting=4)
        with pytest.raises(InferenceError):
            await batcher.submit(1, deadline_s=within(1))
        await batcher.close()

    asyncio.run(run())


def test_closing_completes_waiting_requests_and_refuses_later_ones():
    async def test(engine, batcher):
        first = await held(engine, batcher)
        tasks = await queued(batcher, [1, 2, 3, 4, 5])
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher.submit(9, deadline_s=within(10))
        engine.gate.set()
        await closing
        assert [result.output for result in await asyncio.gather(first, *tasks)] == [0, 2, 4, 6, 8, 10]

    batching(test)


def test_at_most_one_batch_per_stream_runs_at_a_time():
    streams, batches = 2, 6
    inside, most = [], []
    together = threading.Barrier(streams)

    def run(rows):
        inside.append(rows)
        most.append(len(inside))
        together.wait(DEADLINE_S)  # breaks, and fails the batch, unless another one is running
        inside.remove(rows)
        return rows

    async def submit_all():
        batcher = Batcher(run, max_batch=1, max_waiting=batches, streams=streams)
        results = await asyncio.gather(*(batcher.submit(row, deadline_s=within(10)) for row in range(batches)))
        await batcher.close()
        assert [result.output for result in results] == list(range(batches))

    asyncio.run(submit_all())
    assert max(most) == streams


def test_closing_waits_for_every_stream():
    async def test(engine, batcher):
        engine.gate.clear()
        running = [asyncio.ensure_future(batcher.submit(row, deadline_s=within(10))) for row in range(3)]
        while batcher.waiting or not engine.entered.is_set():
            await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        assert not closing.done()
        engine.gate.set()
        await closing
        assert [result.output for result in await asyncio.gather(*running)] == [0, 2, 4]

    batching(test, max_batch=1, streams=3)
