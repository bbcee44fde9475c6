"""Reads the rows of the shards of a job."""

import csv
import json

import pyarrow.parquet as pq


def rows_of(output):
    """Return all rows of all shards, in order; values from CSV are text."""
    rows = []
    for path in sorted(output.glob("part-*")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            rows += [json.loads(line) for line in path.read_text().splitlines()]
        else:
            with path.open(newline="") as file:
                rows += list(csv.DictReader(file, strict=True))
    return rows
