"""Times functions on a shared machine. The functions run in turns, so that a busy moment slows all of them alike.

Does not know what the functions do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")

ROUNDS = 31
LEAST_ROUNDS = 3
TURN_S = 0.02  # a shorter turn would measure the clock and the scheduler


def run_in_turns(
    functions: Sequence[Callable[[], Result]], *, rounds: int = ROUNDS, seconds: float = math.inf
) -> list[list[Result]]:
    """Returns a list for each function with its result in each round. The order of the functions alternates.

    Runs `rounds` rounds, but stops before a round that would end after `seconds`. Runs three rounds in any case, unless
    `rounds` is less.
    """
    results: list[list[Result]] = [[] for _ in functions]
    started = time.monotonic()
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and (time.monotonic() - started) * (turn + 1) / turn > seconds:
            break
        for index in range(len(functions)) if turn % 2 else reversed(range(len(functions))):
            results[index].append(functions[index]())
    return results


def median_seconds(functions: Sequence[Callable[[], object]], *, rounds: int = ROUNDS) -> list[float]:
    """Returns the median seconds per call of each function. They run in turns of about 20 ms, after a warm-up."""
    for function in functions:
        function()
    calls = calls_to_fill(TURN_S, time_calls(functions[0], 1))
    times = run_in_turns([partial(time_calls, function, calls) for function in functions], rounds=rounds)
    return [median(turns) / calls for turns in times]


def time_calls(function: Callable[[], object], calls: int) -> float:
    """Returns the seconds that `calls` calls take, one after the other."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - started


def calls_to_fill(seconds: float, call_s: float) -> int:
    """Returns how many calls of `call_s` seconds fit into `seconds`; at least one."""
    return max(1, int(seconds / max(call_s, 1e-9)))
