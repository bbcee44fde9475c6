"""Searches for the best settings of a peer, for the throughput of many connections and for the latency of one.

Knows a setting as a name with values, and not what it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a server with some settings reached: throughput at many connections, and latency at one; NaN: nothing."""

    rate: float  # responses with status 200 per second
    p50_ms: float


@dataclass(frozen=True)
class BestSettings:
    """The settings with the highest throughput, and those with the lowest latency."""

    throughput: Settings
    latency: Settings


def find_best_settings(
    defaults: Settings,
    start: Settings,
    choices: Mapping[str, tuple[Any, ...]],
    measure: Callable[[Settings], Trial],
) -> BestSettings:
    """Returns the best settings of a peer.

    The search begins at `start`, and tries the values of one setting after the other. It keeps the best value of each.
    At the end it compares the result with the defaults. measure: runs a server with the settings. It is called once for
    each combination.
    """
    trials: dict[tuple[tuple[str, Any], ...], Trial] = {}

    def trial(settings: Settings) -> Trial:
        key = tuple(sorted(settings.items()))
        if key not in trials:
            trials[key] = measure(settings)
        return trials[key]

    def search(score: Callable[[Trial], float]) -> Settings:
        def comparable(settings: Settings) -> float:
            value = score(trial(settings))
            return -math.inf if math.isnan(value) else value  # NaN would win every comparison of max()

        best = start
        for name, values in choices.items():
            best = max(({**best, name: value} for value in values), key=comparable)
        return max((best, defaults), key=comparable)

    return BestSettings(search(lambda trial: trial.rate), search(lambda trial: -trial.p50_ms))
