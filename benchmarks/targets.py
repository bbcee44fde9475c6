"""Computes figures over the rounds of a benchmark, and prints each figure beside its target.

A figure is NaN if a round has no successful response. NaN prints as "unavailable" and meets no target.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

COMPARISONS = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt, "=": operator.eq}


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the percentile `percent` of the values; NaN if there are no values. percent: 0 to 100."""
    if not values:
        return math.nan
    method = "higher" if math.inf in values else "linear"  # interpolating between two infinities gives NaN
    return float(np.percentile(values, percent, method=method))  # type: ignore[call-overload]


def ratio(measured: float, reference: float) -> float:
    """Returns `measured` / `reference`; NaN unless both exceed 0. A 0 is from a round without a success."""
    return measured / reference if measured > 0 and reference > 0 else math.nan


def median(values: Iterable[float]) -> float:
    """Returns the median of the values; NaN if one of them is NaN."""
    rounds = list(values)
    return math.nan if any(math.isnan(value) for value in rounds) else statistics.median(rounds)


def format_figure(figure: float, precision: str = ".4g") -> str:
    """Returns the figure as text: "unavailable" for NaN, otherwise in the format `precision`."""
    return "unavailable" if math.isnan(figure) else format(figure, precision)


def report_target(name: str, comparison: str, bound: float, measured: float, note: str = "") -> bool:
    """Prints the measurement beside its target. Returns whether it meets the target.

    comparison: a key of COMPARISONS. bound: the target, such as 2 in "≤ 2". note: printed after the verdict.
    """
    is_met: bool = COMPARISONS[comparison](measured, bound)
    verdict = "yes" if is_met else "NO"
    figure = format_figure(measured)
    print(f"{name:<54} target {comparison} {bound:<6.4g} measured {figure:<8} {verdict:<4} {note}", flush=True)
    return is_met


def report_lost(name: str, lost: int, trials: int, note: str = "") -> bool:
    """Prints how many of `trials` requests were lost, beside the target 0. Returns whether none was lost.

    If none was lost, prints an upper bound of the true loss rate (rule of three). Without trials, prints "unavailable"
    and returns False.
    """
    bound = f"true rate below {3 / trials:.2g} at 95 %" if trials and not lost else ""
    parts = (f"of {trials:,}", bound, note)
    return report_target(name, "=", 0, lost if trials else math.nan, "; ".join(part for part in parts if part))
