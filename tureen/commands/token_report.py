"""Prints the origin and the accuracy of learned tokens as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tureen.bundle.token_file import TokenAccuracy, TokenRecord
from tureen.commands.report import accuracy_text


def token_summary(record: TokenRecord) -> str:
    """Returns the origin of a token as a line, and the table of its accuracy."""
    attacked = " under attack" if record.is_robust else ""
    line = (
        f"{record.name}: learned from {record.images:,} images{attacked}, in {record.steps} steps, for {record.model}"
    )
    return "\n".join([line, *token_accuracy_table(record.accuracy)])


def token_accuracy_table(rows: Sequence[TokenAccuracy]) -> list[str]:
    """Returns the lines of a table with the accuracy of a token beside that of the best β."""
    lines = [f"{'left-out images':<44}{'n':>5}  {'token':>20}  {'best β':>20}  wins  losses  p"]
    for row in rows:
        measured = f"under {row.attack}, ε = {row.epsilon_255:g}/255" if row.attack else "without an attack"
        lines.append(
            f"{measured:<44}{row.n:>5}  {accuracy_text(row.token):>20}  {accuracy_text(row.best_beta):>20}  "
            f"{row.wins:4}  {row.losses:6}  {row.p_value:.2g}"
        )
    lines.append("accuracy in % (95 % interval); p: one-sided sign test of the wins against the losses")
    return lines
