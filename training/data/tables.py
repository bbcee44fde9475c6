"""Reads a CSV file of labelled images: a row for each image, with the columns `path` and `label`.

Opens no image.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from training.errors import DataError

TABLE_SUFFIX = ".csv"
PATH_COLUMN, LABEL_COLUMN = "path", "label"


class ImageRow(NamedTuple):
    """An image of the table. path: relative to the folder of the table, or absolute."""

    path: str
    label: str


def read_table(file: Path) -> list[ImageRow]:
    """Returns the rows of a CSV file in UTF-8. The first line has the names of the columns; other columns are ignored.

    Raises DataError if the file cannot be read, if it lacks a column or has no row. Raises DataError with the number of
    the line if a row has no path or label, or if there is no file at the path.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = csv.DictReader(text.splitlines(), strict=True)
        missing = [name for name in (PATH_COLUMN, LABEL_COLUMN) if name not in (lines.fieldnames or ())]
        if missing:
            raise DataError(f"{file} has no column {' and '.join(missing)}: its first line must be path,label")
        rows = [_row(file, lines.line_num, fields) for fields in lines]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8") from error
    if not rows:
        raise DataError(f"{file} has no row of an image")
    return rows


def _row(file: Path, line: int, fields: dict[str | None, str | None]) -> ImageRow:
    row = ImageRow((fields[PATH_COLUMN] or "").strip(), (fields[LABEL_COLUMN] or "").strip())
    for name, value in zip((PATH_COLUMN, LABEL_COLUMN), row, strict=True):
        if not value:
            raise DataError(f"{file}, line {line}: the {name} is empty")
    if not (file.parent / row.path).is_file():
        raise DataError(f"{file}, line {line}: there is no file {row.path}")
    return row
