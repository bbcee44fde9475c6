"""Fits text to the width of a terminal. Knows no command."""

from __future__ import annotations

import shutil
import textwrap

INDENT = 4
DEFAULT_COLUMNS = 80


def terminal_columns() -> int | None:
    """Returns the width of the terminal: COLUMNS, or else the width of standard output. None if it is no terminal."""
    return shutil.get_terminal_size((0, 0)).columns or None


def wrapped(text: str, columns: int | None) -> str:
    """Returns the text with a line break wherever a line is longer than `columns`, and the rest of the line indented.

    A word is never broken, so that a URL or a path can still be copied. columns: None for text that is not shown on a
    terminal, which is returned as it is.
    """
    if columns is None:
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, columns))


def _pieces(line: str, columns: int) -> list[str]:
    if len(line) <= columns:
        return [line]
    before = len(line) - len(line.lstrip())
    indent = " " * min(before + INDENT, columns // 2)
    pieces = textwrap.wrap(
        line.rstrip(),
        columns,
        subsequent_indent=indent,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return pieces or [""]
