"""What a manifest says, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tureen.bundle import AccuracyRow, ParityRow


def accuracy_table(rows: Sequence[AccuracyRow]) -> str:
    """The β table as text, a row a β, each accuracy in per cent with its 95 % interval."""
    first = rows[0]
    lines = [
        f"accuracy on {first.n} held-out images, % (95 % interval); robust: {first.attack}, "
        f"l∞ ε = {first.epsilon_255:g}/255, on each soup itself",
        f"{'β':>6}  {'clean':>20}  {'robust':>20}",
    ]
    for row in rows:
        cells = [f"{100 * a.value:5.1f} ({100 * a.low:4.1f}–{100 * a.high:5.1f})" for a in (row.clean, row.robust)]
        lines.append(f"{row.beta:6.2f}  {cells[0]:>20}  {cells[1]:>20}")
    return "\n".join(lines)


def parity_table(rows: Sequence[ParityRow]) -> str:
    """A row for each engine and precision that the bundle vouches for."""
    lines = [f"{'engine':<22} {'largest |Δ|':>12} {'mean |Δ|':>10} {'same label':>11}   against PyTorch, logits"]
    for row in rows:
        name = f"{row.engine} {row.precision}"
        lines.append(
            f"{name:<22} {row.max_abs_diff:12.1e} {row.mean_abs_diff:10.1e} {100 * row.top1_agreement:10.2f}%"
            f"   {row.n} images at each of {len(row.betas)} β, {row.engine} {row.engine_version}"
        )
    return "\n".join(lines)
