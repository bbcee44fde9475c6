"""Times functions on a shared machine. The functions run in turns, so that a busy moment slows all of them alike.

Knows nothing about the functions.
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
    """Calls every function once in each round. Returns one list for each function, with its results by round.

    The order of the functions is reversed in every second round. Runs at most `rounds` rounds. Stops before a round
    that would probably end after `seconds` seconds, but not before LEAST_ROUNDS rounds.
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
    """Returns the median duration of a call of each function, in seconds.

    Calls each function once as a warm-up. Then the functions take turns. A turn has as many calls as take the first
    function about 20 ms.
    """
    for function in functions:
        function()
    calls = calls_to_fill(TURN_S, time_calls(functions[0], 1))
    times = run_in_turns([partial(time_calls, function, calls) for function in functions], rounds=rounds)
    return [median(turns) / calls for turns in times]


def time_calls(function: Callable[[], object], calls: int) -> float:
    """Calls the function `calls` times, one call after the other. Returns the seconds that all calls take."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - started


def calls_to_fill(seconds: float, call_s: float) -> int:
    """Returns the number of calls of `call_s` seconds each that fit into `seconds` seconds; at least 1."""
    return max(1, int(seconds / max(call_s, 1e-9)))
