"""One row for each image and β, and the files they are kept in: Parquet, JSONL or CSV, written aside, then renamed.

    id, path       string    of the input
    sha256         string    of the bytes; null where they could not be read
    status         string    ok or error
    error_code, error        string, null where ok
    label, index, probability  of the most probable class; null where not ok
    top_k          list of label, index and probability, the most probable first; JSON in CSV; null where not ok
    beta           double    null: the model has one token
    model, version, engine, precision  string

CSV is safe to open in a spreadsheet: a text that would begin a formula gets an apostrophe in front.
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
from serve.jobs.atomic_files import reopen, write_whole
from tureen.soup import probabilities

T = TypeVar("T")
Format = Literal["parquet", "jsonl", "csv"]
COLUMNS = (
    "id", "path", "sha256", "status", "error_code", "error", "label", "index", "probability", "top_k", "beta",
    "model", "version", "engine", "precision",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@")
_SUSPECT = (*_FORMULA, "'", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MAX_CELL = 1 << 28  # characters; top_k of many classes is long
NONE = -1  # as the index of a class in the row of an error


@dataclass(frozen=True)
class Told:
    """What is the same in every row of a job, and the names of its classes."""

    labels: Sequence[str]
    model: str
    version: str
    engine: str
    precision: str


class Shard:
    """R rows, to be filled in: of images that failed at once, of the others as their batches come back."""

    def __init__(self, rows: int, top_k: int) -> None:
        self.ids, self.paths = [""] * rows, [""] * rows
        self.sha256: list[str | None] = [None] * rows
        self.error_codes: list[str | None] = [None] * rows
        self.errors: list[str | None] = [None] * rows
        self.betas: list[float | None] = [None] * rows
        self.indices = np.full((rows, top_k), NONE, np.int32)
        self.probabilities = np.zeros((rows, top_k))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> list[int]:
        """The rows of errors."""
        return [n for n, code in enumerate(self.error_codes) if code is not None]

    def fill(self, at: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Rows `at` get the classes of logits float32 (len(at), K); ties keep the order of the labels."""
        shares = probabilities(logits)
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.indices.shape[1]]
        self.indices[at] = best
        self.probabilities[at] = np.take_along_axis(shares, best, axis=1)

    def rows(self, told: Told) -> Iterator[dict[str, Any]]:
        """Each row by name of column."""
        every = {"model": told.model, "version": told.version, "engine": told.engine, "precision": told.precision}
        for n in range(len(self)):
            top = None
            if self.error_codes[n] is None:
                pairs = zip(self.indices[n].tolist(), self.probabilities[n].tolist(), strict=True)
                top = [{"label": told.labels[i], "index": i, "probability": share} for i, share in pairs]
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
                **every,
            }


def shard_of(rows: Sequence[Mapping[str, Any]], top_k: int) -> Shard:
    """The shard that holds these rows."""
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


def write_shard(path: Path, shard: Shard, told: Told, format: Format, metadata: Mapping[str, str]) -> None:
    """The file with all rows or none; raises OSError."""
    write_whole(path, lambda file: _WRITERS[format](file, shard, told, metadata))


def read_shard(path: Path, format: Format, top_k: int) -> Shard:
    """The rows of a shard; raises OutputError where it is none."""
    return _read(path, lambda file: shard_of(_READERS[format](file), top_k))


def read_rows(path: Path, format: Format) -> list[dict[str, Any]]:
    """The same by name of column."""
    return _read(path, _READERS[format])


def _read(path: Path, read: Callable[[BinaryIO], T]) -> T:
    try:
        with reopen(path) as file:
            return read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise OutputError(f"{path} cannot be read back: remove it, and --resume makes it again") from error


def _write_parquet(file: IO[bytes], shard: Shard, told: Told, metadata: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, top_k = shard.indices.shape
    is_error = shard.indices[:, 0] == NONE
    labels = pa.array(told.labels, pa.string())
    best = pa.array(shard.indices[:, 0], pa.int32(), mask=is_error)
    flat = shard.indices[~is_error].ravel()
    top = pa.StructArray.from_arrays(
        [labels.take(pa.array(flat)), pa.array(flat), pa.array(shard.probabilities[~is_error].ravel())],
        names=["label", "index", "probability"],
    )
    # One offset more than rows; that of a null list is null.
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
        **{name: pa.repeat(getattr(told, name), rows) for name in ("model", "version", "engine", "precision")},
    }
    table = pa.table({name: columns[name] for name in COLUMNS}).replace_schema_metadata(dict(metadata))
    pq.write_table(table, file, compression="zstd")


def _read_parquet(file: BinaryIO) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        rows: list[dict[str, Any]] = table.read(columns=list(COLUMNS)).to_pylist()
        return rows


def _write_jsonl(file: IO[bytes], shard: Shard, told: Told, metadata: Mapping[str, str]) -> None:
    for row in shard.rows(told):
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _read_jsonl(file: BinaryIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file]


def _write_csv(file: IO[bytes], shard: Shard, told: Told, metadata: Mapping[str, str]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")  # which has both quoted
    writer.writeheader()
    for row in shard.rows(told):
        row["top_k"] = row["top_k"] and json.dumps(row["top_k"], ensure_ascii=False)
        writer.writerow({name: _inert(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
    text.detach()  # flushed; whoever opened the file closes it


def _read_csv(file: BinaryIO) -> list[dict[str, Any]]:
    kinds: dict[str, Callable[[str], Any]] = {"index": int, "probability": float, "beta": float, "top_k": json.loads}
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.field_size_limit(MAX_CELL)
    rows = [
        {
            name: kinds.get(name, str)(_live(cell)) if cell or name in ("id", "path") else None
            for name, cell in row.items()
        }
        for row in csv.DictReader(text, strict=True)
    ]
    text.detach()  # whoever opened the file closes it
    return rows


def _inert(text: str) -> str:
    """The text such that no spreadsheet takes it for a formula; one that begins with an apostrophe gets another."""
    return f"'{text}" if text.startswith(_SUSPECT) or text.lstrip().startswith(_FORMULA) else text


def _live(cell: str) -> str:
    return cell.removeprefix("'")


_WRITERS = {"parquet": _write_parquet, "jsonl": _write_jsonl, "csv": _write_csv}
_READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
