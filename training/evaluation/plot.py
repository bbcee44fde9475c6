"""Draws the results of an evaluation as PNG files. Measures nothing.

The colours suit colour-blind readers. Lines differ in dash or marker too, so that they are distinct in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from tureen.bundle.manifest import Accuracy, AccuracyRow, ShiftRow, TransferMatrix
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

BLUE, VERMILION = "#0072b2", "#d55e00"  # Okabe & Ito, Color universal design, 2008
MARKERS = "osD^vP*Xd<>"
BETA_AXIS = "β   (0 clean token, 1 robust token)"


def plot_accuracy(rows: Sequence[AccuracyRow], path: Path, *, title: str) -> None:
    """Draws clean and robust accuracy over β, with 95 % intervals, into the PNG file `path`."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    betas = [row.beta for row in rows]
    series: list[tuple[str, str, str, list[Accuracy]]] = [
        ("clean images", BLUE, "-", [row.clean for row in rows]),
        (
            f"{rows[0].attack}, l∞ ε = {rows[0].epsilon_255:g}/255, on each soup itself",
            VERMILION,
            "--",
            [row.robust for row in rows],
        ),
    ]
    for label, colour, line, accuracies in series:
        axes.plot(betas, _percent(a.value for a in accuracies), line, marker="o", color=colour, label=label)
        axes.fill_between(
            betas, _percent(a.low for a in accuracies), _percent(a.high for a in accuracies), color=colour, alpha=0.15
        )
    for start, stop in ((min(betas), CLEAN_BETA), (ROBUST_BETA, max(betas))):
        if start < stop:
            axes.axvspan(start, stop, color="0.9", zorder=0)
            axes.text((start + stop) / 2, 50, "never served", rotation=90, ha="center", va="center", color="0.4")
    axes.set(xlabel=BETA_AXIS, ylabel="accuracy, %", ylim=(0, 101), title=title)
    axes.grid(alpha=0.3)
    figure.legend(title=f"n = {rows[0].n}, 95 % intervals", loc="outside lower center")
    figure.savefig(path, format="png")


def plot_matrix(matrix: TransferMatrix, path: Path, *, title: str) -> None:
    """Draws the transfer matrix as a heat map with numbers into the PNG file `path`.

    A frame marks each suspect cell: there, the attack at the served β was too weak.
    """
    betas = [f"{beta:g}" for beta in matrix.betas]
    shares = [*matrix.robust, matrix.joint, [accuracy.value for accuracy in matrix.worst]]
    figure = _figure(2.6 + 0.75 * len(betas), 2.3 + 0.55 * len(shares))
    axes = figure.subplots()
    picture = axes.imshow([_percent(row) for row in shares], cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            text = f"{100 * share:.1f}"
            if row == len(shares) - 1:
                worst = matrix.worst[column]
                text += f"\n{100 * worst.low:.1f}–{100 * worst.high:.1f}"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color="black" if share > 0.5 else "white",
                fontsize=9 if "\n" not in text else 8,
                fontweight="bold" if row == column else "normal",
            )
    for suspect in matrix.suspects:
        row = len(betas) if suspect.attacked is None else matrix.betas.index(suspect.attacked)
        column = matrix.betas.index(suspect.served)
        axes.add_patch(_frame(column, row))
    axes.axhline(len(betas) - 0.5, color="white", linewidth=2)
    axes.set_xticks(range(len(betas)), betas)
    axes.set_yticks(range(len(shares)), [*betas, "all at once", "worst, by image"])
    footnotes = ["β served", "bold: the soup attacked itself"]
    if matrix.suspects:
        footnotes.append("framed: lower than bold, so the attack there was too weak")
    axes.set(xlabel="\n".join(footnotes), ylabel="β attacked")
    axes.set_title(title, pad=12)
    figure.colorbar(
        picture,
        label=f"robust accuracy, %   n = {matrix.n}\n{matrix.attack}, l∞ ε = {matrix.epsilon_255:g}/255",
    )
    figure.savefig(path, format="png")


def plot_epsilon_curve(curve: Sequence[AccuracyRow], path: Path, *, title: str) -> None:
    """Draws robust accuracy over the radius into the PNG file `path`: a line with 95 % intervals for each β."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    betas = list(dict.fromkeys(row.beta for row in curve))
    for index, beta in enumerate(betas):
        rows = [row for row in curve if row.beta == beta]
        radii, colour = [row.epsilon_255 for row in rows], _colour(index, len(betas))
        axes.plot(
            radii,
            _percent(row.robust.value for row in rows),
            marker=_marker(index),
            color=colour,
            label=f"β = {beta:g}",
        )
        axes.fill_between(
            radii,
            _percent(row.robust.low for row in rows),
            _percent(row.robust.high for row in rows),
            color=colour,
            alpha=0.15,
        )
    positive = [row.epsilon_255 for row in curve if row.epsilon_255]
    if positive:  # each radius is twice the one before; 0 is on the linear part
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5, base=2)
        axes.set_xticks(sorted({0.0, *positive}), [f"{radius:g}" for radius in sorted({0.0, *positive})])
        axes.minorticks_off()
    axes.set(xlabel="radius under l∞, ε · 255", ylabel="robust accuracy, %", ylim=(0, 101), title=title)
    axes.grid(alpha=0.3)
    axes.legend(title=f"{curve[0].attack} on each soup itself\nn = {curve[0].n}, 95 % intervals", loc="best")
    figure.savefig(path, format="png")


def plot_shifts(rows: Sequence[ShiftRow], path: Path, *, title: str) -> None:
    """Draws accuracy over severity into the PNG file `path`.

    The figure has a panel for each family of corruptions, and each panel has a line for each β.
    """
    families = list(dict.fromkeys(row.family for row in rows))
    betas = list(dict.fromkeys(row.beta for row in rows))
    severities = list(rows[0].accuracy)
    figure = _figure(1.2 + 2.4 * len(families), 3.6)
    panels: Sequence[Axes] = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        members = [row for row in rows if row.family == family]
        names = list(dict.fromkeys(row.name for row in members))
        for index, beta in enumerate(betas):
            at_beta = [row for row in members if row.beta == beta]
            means = [mean(row.accuracy[severity] for row in at_beta) for severity in severities]
            axes.plot(
                severities,
                _percent(means),
                marker=_marker(index),
                color=_colour(index, len(betas)),
                label=f"β = {beta:g}",
            )
        axes.set(xlabel="severity", title=f"{family}\nmean of {len(names)}", ylim=(0, 101), xticks=severities)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, no attack, %")
    figure.legend(*panels[0].get_legend_handles_labels(), title=f"n = {rows[0].n}", loc="outside right center")
    figure.suptitle(title)
    figure.savefig(path, format="png")


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure. width, height: in inches.

    Does not use pyplot, because pyplot would keep the figure in memory.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _frame(column: int, row: int) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=VERMILION, linewidth=2.5)


def _percent(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def _colour(index: int, count: int) -> tuple[float, float, float, float]:
    """Returns colour `index` of `count` colours as RGBA, from dark blue to a yellow that is visible on white."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](0.9 * index / max(1, count - 1))
    return red, green, blue, alpha


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]
