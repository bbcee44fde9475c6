"""What accuracy a default β promises by the bundle's table; between two measured β by a straight line, as it says."""

from __future__ import annotations

from typing import Any

from tureen.bundle.manifest import Accuracy, Manifest


def expected_accuracy(manifest: Manifest, beta: float | None) -> dict[str, Any] | None:
    """Clean and robust accuracy at β, each with its 95 % interval, n, attack and ε; None where the table has none.

    Outside the measured β there is no number, and none is made up.
    """
    rows = sorted(manifest.accuracy, key=lambda row: row.beta)
    if beta is None or not rows or not rows[0].beta <= beta <= rows[-1].beta:
        return None
    upper = next(row for row in rows if row.beta >= beta)
    lower = next(row for row in reversed(rows) if row.beta <= beta)
    share = 0.0 if upper is lower else (beta - lower.beta) / (upper.beta - lower.beta)
    return {
        "clean": _between(lower.clean, upper.clean, share),
        "robust": _between(lower.robust, upper.robust, share),
        "n": min(lower.n, upper.n),
        "attack": upper.attack,
        "epsilon_255": upper.epsilon_255,
        "interpolated": upper is not lower,
    }


def _between(lower: Accuracy, upper: Accuracy, share: float) -> dict[str, float]:
    return {
        name: (1 - share) * getattr(lower, name) + share * getattr(upper, name) for name in ("value", "low", "high")
    }
