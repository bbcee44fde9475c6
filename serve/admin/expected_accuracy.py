"""Computes the expected accuracy at a β from the accuracies in the manifest, which were measured at several β."""

from __future__ import annotations

from typing import Any

from tureen.bundle.manifest import Accuracy, Manifest, failed_checks


def expected_accuracy(manifest: Manifest, beta: float | None) -> dict[str, Any] | None:
    """Returns the clean and robust accuracy at β, as the JSON object of a response.

    Interpolates linearly between the two nearest measured β; "interpolated" is False if β itself was measured. Each
    accuracy has a 95 % interval. "n" is the number of images. "epsilon_255" is the radius of the attack under "norm",
    in 1/255. "failed_checks" names the checks of the attack that failed at these β; if any failed, the true robust
    accuracy is lower.

    Returns None if no accuracy was measured, if β is None (the model has one token), or if β is outside the measured
    range.
    """
    rows = sorted(manifest.accuracy, key=lambda row: row.beta)
    if beta is None or not rows or not rows[0].beta <= beta <= rows[-1].beta:
        return None
    upper = next(row for row in rows if row.beta >= beta)
    lower = next(row for row in reversed(rows) if row.beta <= beta)
    share = 0.0 if upper is lower else (beta - lower.beta) / (upper.beta - lower.beta)
    return {
        "clean": _interpolate(lower.clean, upper.clean, share),
        "robust": _interpolate(lower.robust, upper.robust, share),
        "n": min(lower.n, upper.n),
        "attack": upper.attack,
        "epsilon_255": upper.epsilon_255,
        "norm": upper.norm,
        "interpolated": upper is not lower,
        "failed_checks": failed_checks(manifest.evaluation.checks, lower.beta, upper.beta),
    }


def _interpolate(lower: Accuracy, upper: Accuracy, share: float) -> dict[str, float]:
    return {
        name: (1 - share) * getattr(lower, name) + share * getattr(upper, name) for name in ("value", "low", "high")
    }
