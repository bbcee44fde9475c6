"""Comparing what is timed on a machine that others use too: everything in turns, so that a busy moment hits all alike.

Does not know what it times.
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
TURN_S = 0.02  # shorter, and the clock and the scheduler are what is measured


def run_in_turns(
    functions: Sequence[Callable[[], Result]], *, rounds: int = ROUNDS, seconds: float = math.inf
) -> list[list[Result]]:
    """What each function returned, round by round; who comes first alternates.

    The last round is the one that would still end within `seconds`, but there are three at least, or `rounds`.
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
    """Median seconds of each function, called in turns after a warm-up; each turn is as many calls as fill 20 ms."""
    for function in functions:
        function()
    calls = calls_to_fill(TURN_S, time_calls(functions[0], 1))
    times = run_in_turns([partial(time_calls, function, calls) for function in functions], rounds=rounds)
    return [median(turns) / calls for turns in times]


def time_calls(function: Callable[[], object], calls: int) -> float:
    """How long so many calls take, one after the other."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - started


def calls_to_fill(seconds: float, call_s: float) -> int:
    """How many calls of that length fit into so many seconds; one at least."""
    return max(1, int(seconds / max(call_s, 1e-9)))
