"""Holds the rows of a shard, one for each image and β, and writes and reads them as Parquet, JSONL or CSV. The columns:

    id, path           string; of the image in the input
    sha256             string; of the image's bytes; null if they could not be read
    status             string; ok or error
    error_code, error  string; null if the status is ok
    label, index, probability   the most probable class; null if the status is error
    top_k              list of label, index and probability, most probable first; JSON in CSV; null if the status is
                       error
    beta               double; null if the model has one token
    strength           double; strength of this β in the model, 0 to 1; null if the model has one token, or if an
                       earlier version of Tureen began the job
    model, version, engine, precision   string

A spreadsheet can open the CSV safely: a text that the spreadsheet would run as a formula begins with an apostrophe.
`tureen.atomic_file` makes the files durable.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.errors import OutputError
from serve.jobs.rooted_files import open_regular_file
from tureen.atomic_file import atomic_file
from tureen.bundle.strength_curve import StrengthCurve
from tureen.interface.probabilities import probabilities

T = TypeVar("T")
Format = Literal["parquet", "jsonl", "csv"]
MODEL_COLUMNS = ("model", "version", "engine", "precision")
COLUMNS = (
    "id", "path", "sha256", "status", "error_code", "error", "label", "index", "probability", "top_k", "beta",
    "strength", *MODEL_COLUMNS,
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@")
_SUSPECT = (*_FORMULA, "'", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MAX_CELL = 1 << 28  # characters; the top_k of many classes is long
NO_CLASS = -1  # class index in the row of an error


@dataclass(frozen=True)
class ModelInfo:
    """The columns that are equal in all rows of a job, and the labels of the classes in the order of the logits.

    strength: the curve that gives the strength of each β.
    """

    labels: Sequence[str]
    model: str
    version: str  # of the model
    engine: str
    precision: str
    strength: StrengthCurve | None = None  # None: the strength of every row is null

    def strengths(self, betas: Sequence[float | None]) -> list[float | None]:
        """Returns the strength of each β, 0 to 1; None where β is None, or if there is no curve."""
        curve = self.strength
        by_beta = {beta: None if beta is None or curve is None else curve.strength_at(beta) for beta in set(betas)}
        return [by_beta[beta] for beta in betas]


class Shard:
    """The columns of R rows, one for each image and β.

    indices, probabilities: the class columns, (R, top_k): class indices, most probable first, and their probabilities.
    `fill` sets them when the batch of a row is finished.
    """

    def __init__(self, rows: int, top_k: int) -> None:
        self.ids, self.paths = [""] * rows, [""] * rows
        self.sha256: list[str | None] = [None] * rows
        self.error_codes: list[str | None] = [None] * rows
        self.errors: list[str | None] = [None] * rows
        self.betas: list[float | None] = [None] * rows
        self.indices = np.full((rows, top_k), NO_CLASS, np.int32)
        self.probabilities = np.zeros((rows, top_k))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed_rows(self) -> list[int]:
        """The indices of the rows with an error."""
        return [n for n, code in enumerate(self.error_codes) if code is not None]

    def fill(self, rows: Sequence[int], logits: NDArray[np.float32], temperatures: NDArray[np.float64]) -> None:
        """Sets the most probable classes of the rows with the indices `rows`, and their probabilities.

        logits: float32 (len(rows), K). temperatures: (len(rows),); the probabilities are the softmax of logits /
        temperature. Classes of equal logits keep the order of the labels.
        """
        shares = probabilities(logits, temperatures)
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.indices.shape[1]]
        self.indices[rows] = best
        self.probabilities[rows] = np.take_along_axis(shares, best, axis=1)

    def rows(self, info: ModelInfo) -> Iterator[dict[str, Any]]:
        """Yields each row as a dictionary by column name. info: the columns that are equal in all rows."""
        model_columns = {name: getattr(info, name) for name in MODEL_COLUMNS}
        strengths = info.strengths(self.betas)
        for n in range(len(self)):
            top = None
            if self.error_codes[n] is None:
                pairs = zip(self.indices[n].tolist(), self.probabilities[n].tolist(), strict=True)
                top = [{"label": info.labels[i], "index": i, "probability": share} for i, share in pairs]
            first: dict[str, Any] = top[0] if top else {"label": None, "index": None, "probability": None}
            yield {
                "id": self.ids[n],
                "path": self.paths[n],
                "sha256": self.sha256[n],
                "status": "ok" if top else "error",
                "error_code": self.error_codes[n],
                "error": self.errors[n],
                **first,
                "top_k": top,
                "beta": self.betas[n],
                "strength": strengths[n],
                **model_columns,
            }


def shard_from_rows(rows: Sequence[Mapping[str, Any]], top_k: int) -> Shard:
    """Returns the shard with these rows. rows: dictionaries by column name. top_k: classes per row."""
    shard = Shard(len(rows), top_k)
    for n, row in enumerate(rows):
        shard.ids[n], shard.paths[n], shard.sha256[n], shard.betas[n] = (
            row["id"],
            row["path"],
            row["sha256"],
            row["beta"],
        )
        shard.error_codes[n], shard.errors[n] = row["error_code"], row["error"]
        if row["top_k"] is not None:
            shard.indices[n] = [one["index"] for one in row["top_k"]]
            shard.probabilities[n] = [one["probability"] for one in row["top_k"]]
    return shard


def write_shard(path: Path, shard: Shard, info: ModelInfo, format: Format, metadata: Mapping[str, str]) -> None:
    """Writes a shard to a file atomically. Only Parquet stores the metadata. Raises OSError if the disk fails."""
    with atomic_file(path) as file:
        _WRITERS[format](file, shard, info, metadata)


def read_shard(path: Path, format: Format, top_k: int) -> Shard:
    """Returns the shard in a file. top_k: classes per row. Raises OutputError if the file is unreadable or damaged."""
    return _read(path, lambda file: shard_from_rows(_READERS[format](file), top_k))


def read_rows(path: Path, format: Format) -> list[dict[str, Any]]:
    """Returns the rows in a file as dictionaries by column name. Raises OutputError if it is unreadable or damaged."""
    return _read(path, _READERS[format])


def _read(path: Path, read: Callable[[BinaryIO], T]) -> T:
    try:
        with open_regular_file(path) as file:
            return read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise OutputError(f"{path} cannot be read back: remove it, and --resume makes it again") from error


def _write_parquet(file: IO[bytes], shard: Shard, info: ModelInfo, metadata: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, top_k = shard.indices.shape
    is_error = shard.indices[:, 0] == NO_CLASS
    labels = pa.array(info.labels, pa.string())
    best = pa.array(shard.indices[:, 0], pa.int32(), mask=is_error)
    flat = shard.indices[~is_error].ravel()
    top = pa.StructArray.from_arrays(
        [labels.take(pa.array(flat)), pa.array(flat), pa.array(shard.probabilities[~is_error].ravel())],
        names=["label", "index", "probability"],
    )
    # There is one more offset than rows. The offset of a null list is null.
    ends = np.concatenate([[0], np.cumsum(~is_error) * top_k]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(is_error, False))
    columns = {
        "id": pa.array(shard.ids, pa.string()),
        "path": pa.array(shard.paths, pa.string()),
        "sha256": pa.array(shard.sha256, pa.string()),
        "status": pa.array(np.where(is_error, "error", "ok").tolist(), pa.string()),
        "error_code": pa.array(shard.error_codes, pa.string()),
        "error": pa.array(shard.errors, pa.string()),
        "label": labels.take(best),
        "index": best,
        "probability": pa.array(shard.probabilities[:, 0], mask=is_error),
        "top_k": pa.ListArray.from_arrays(offsets, top),
        "beta": pa.array(shard.betas, pa.float64()),
        "strength": pa.array(info.strengths(shard.betas), pa.float64()),
        **{name: pa.repeat(getattr(info, name), rows) for name in MODEL_COLUMNS},
    }
    table = pa.table({name: columns[name] for name in COLUMNS}).replace_schema_metadata(dict(metadata))
    pq.write_table(table, file, compression="zstd")


def _read_parquet(file: BinaryIO) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        rows: list[dict[str, Any]] = table.read(columns=list(COLUMNS)).to_pylist()
        return rows


def _write_jsonl(file: IO[bytes], shard: Shard, info: ModelInfo, metadata: Mapping[str, str]) -> None:
    for row in shard.rows(info):
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _read_jsonl(file: BinaryIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file]


def _write_csv(file: IO[bytes], shard: Shard, info: ModelInfo, metadata: Mapping[str, str]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")  # the writer quotes cells that contain either
    writer.writeheader()
    for row in shard.rows(info):
        row["top_k"] = row["top_k"] and json.dumps(row["top_k"], ensure_ascii=False)
        writer.writerow({name: _escape_formula(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
    text.detach()  # flushes the text; the caller closes the file


def _read_csv(file: BinaryIO) -> list[dict[str, Any]]:
    kinds: dict[str, Callable[[str], Any]] = {
        "index": int,
        "probability": float,
        "beta": float,
        "strength": float,
        "top_k": json.loads,
    }
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.field_size_limit(MAX_CELL)
    rows = [
        {
            name: kinds.get(name, str)(_unescape_formula(cell)) if cell or name in ("id", "path") else None
            for name, cell in row.items()
        }
        for row in csv.DictReader(text, strict=True)
    ]
    text.detach()  # the caller closes the file
    return rows


def _escape_formula(text: str) -> str:
    """Returns the text, after an apostrophe if a spreadsheet could run the text or if it begins with an apostrophe."""
    return f"'{text}" if text.startswith(_SUSPECT) or text.lstrip().startswith(_FORMULA) else text


def _unescape_formula(cell: str) -> str:
    return cell.removeprefix("'")


_WRITERS = {"parquet": _write_parquet, "jsonl": _write_jsonl, "csv": _write_csv}
_READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
