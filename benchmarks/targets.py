"""One line of a table: what was asked, what was measured, and whether the one meets the other."""

from __future__ import annotations

import operator

COMPARISONS = {"≥": operator.ge, "≤": operator.le, "<": operator.lt, "=": operator.eq}


def line(name: str, comparison: str, bound: float, measured: float, note: str = "") -> bool:
    """Print the line, and say whether what was asked is met; a measurement that is not a number meets nothing."""
    is_met: bool = COMPARISONS[comparison](measured, bound)
    verdict = "yes" if is_met else "NO"
    print(f"{name:<54} asked {comparison} {bound:<6.4g} measured {measured:<8.4g} {verdict:<4} {note}", flush=True)
    return is_met


def none_lost(name: str, lost: int, trials: int, note: str = "") -> bool:
    """A line that asks for nothing lost in so many trials; with what a zero says of the true rate (rule of three)."""
    bound = f"true rate below {3 / trials:.2g} at 95 %" if trials and not lost else ""
    return line(name, "=", 0, lost, "; ".join(part for part in (f"of {trials:,}", bound, note) if part))
