"""Accuracy over β, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tureen.bundle import Accuracy, AccuracyRow


def plot_accuracy(rows: Sequence[AccuracyRow], path: Path, *, title: str) -> None:
    """Draw clean and robust accuracy over β, with their 95 % intervals, to a PNG at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    betas = [row.beta for row in rows]
    series: list[tuple[str, str, str, list[Accuracy]]] = [
        ("clean images", "#1f77b4", "-", [row.clean for row in rows]),
        (
            f"{rows[0].attack}, l∞ ε = {rows[0].epsilon_255:g}/255, on each soup itself",
            "#d62728",
            "--",
            [row.robust for row in rows],
        ),
    ]
    for label, colour, line, accuracies in series:
        axes.plot(betas, [100 * a.value for a in accuracies], line, marker="o", color=colour, label=label)
        axes.fill_between(
            betas, [100 * a.low for a in accuracies], [100 * a.high for a in accuracies], color=colour, alpha=0.15
        )
    axes.set(xlabel="β   (0 clean token, 1 robust token)", ylabel="accuracy, %", ylim=(0, 101), title=title)
    axes.grid(alpha=0.3)
    axes.legend(title=f"n = {rows[0].n}, 95 % intervals", loc="lower right")
    figure.savefig(path, format="png")
