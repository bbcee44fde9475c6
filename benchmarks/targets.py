"""Prints a measurement beside its target, and whether it meets the target."""

from __future__ import annotations

import operator

COMPARISONS = {"≥": operator.ge, "≤": operator.le, "<": operator.lt, "=": operator.eq}


def report_target(name: str, comparison: str, bound: float, measured: float, note: str = "") -> bool:
    """Print the line, and return whether the measurement meets the target. NaN meets no target."""
    is_met: bool = COMPARISONS[comparison](measured, bound)
    verdict = "yes" if is_met else "NO"
    print(f"{name:<54} target {comparison} {bound:<6.4g} measured {measured:<8.4g} {verdict:<4} {note}", flush=True)
    return is_met


def report_lost(name: str, lost: int, trials: int, note: str = "") -> bool:
    """Print a line whose target is 0 lost of `trials`; a measured 0 gets the bound on the true rate (rule of three)."""
    bound = f"true rate below {3 / trials:.2g} at 95 %" if trials and not lost else ""
    return report_target(name, "=", 0, lost, "; ".join(part for part in (f"of {trials:,}", bound, note) if part))
