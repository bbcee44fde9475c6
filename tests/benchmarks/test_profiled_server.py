"""The timers of the profile: each stage names functions that exist, and nested timers do not count time twice."""

import asyncio
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from benchmarks import profiled_server
from benchmarks.profiled_server import timed

# In a separate process, because the timers stay.
PLACE = "from benchmarks.profiled_server import place_timers; print(place_timers())"


def use_cpu(seconds):
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass


@pytest.fixture
def spent(monkeypatch):
    """Returns the seconds that a stage has spent."""
    spent_ns = profiled_server.defaultdict(int)
    monkeypatch.setattr(profiled_server, "_spent", spent_ns)
    return lambda stage: spent_ns[stage] / 1e9


def test_each_function_of_a_stage_exists():
    result = subprocess.run([sys.executable, "-c", PLACE], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_stage_does_not_include_the_stages_inside_it(spent):
    inner = timed("inner", lambda: use_cpu(0.05))
    timed("outer", inner)()
    assert spent("inner") >= 0.05
    assert spent("outer") < 0.05


def test_a_coroutine_counts_its_steps_and_not_the_time_between_them(spent):
    async def work():
        use_cpu(0.02)
        await asyncio.sleep(0)
        use_cpu(0.02)
        return "result"

    async def run():
        task = asyncio.create_task(timed("coroutine", work)())
        await asyncio.sleep(0)
        use_cpu(0.2)
        return await task

    assert asyncio.run(run()) == "result"
    assert 0.04 <= spent("coroutine") < 0.2


def test_a_cancelled_coroutine_raises_inside_and_outside(spent):
    events = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("inside")
            raise

    async def run():
        task = asyncio.create_task(timed("coroutine", work)())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert events == ["inside"]


def test_a_context_manager_counts_its_start_and_its_end(spent):
    @contextmanager
    def context():
        use_cpu(0.02)
        yield "value"
        use_cpu(0.02)

    with timed("context", context)() as value:
        assert value == "value"
        use_cpu(0.2)
    assert 0.04 <= spent("context") < 0.2
