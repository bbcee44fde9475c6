"""Draws a table with bars as HTML, for notebooks. The HTML loads nothing, and every text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

BAR = "display:inline-block;height:0.8em;background:#0072b2"
BAR_EM = 8  # width of the bar of a probability of 1
CELL = "text-align:left;padding:0.1em 0.8em"


def bar_table(caption: str, header: Sequence[str], rows: Sequence[tuple[Sequence[str], float | None]]) -> str:
    """Returns the HTML of a table. The last column of each row is a bar with a percentage.

    header: the names of all columns. rows: the texts of the other columns, and a share in [0, 1], or None for no bar.
    """
    lines = [f"<table><caption>{escape(caption)}</caption>", _row("th", [escape(name) for name in header])]
    lines += [_row("td", [*map(escape, texts), "" if share is None else _bar(share)]) for texts, share in rows]
    return "\n".join([*lines, "</table>"])


def _row(tag: str, cells: Sequence[str]) -> str:
    shown = "".join(f'<{tag} style="{CELL}">{cell}</{tag}>' for cell in cells)
    return f"<tr>{shown}</tr>"


def _bar(share: float) -> str:
    return f'<span style="{BAR};width:{BAR_EM * share:.2f}em"></span> {share:.1%}'
