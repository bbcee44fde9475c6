"""The rows of a job's shards, as an analysis would read them."""

import csv
import json

import pyarrow.parquet as pq


def rows_of(output):
    """All rows of all shards, in order; those of CSV as text."""
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
