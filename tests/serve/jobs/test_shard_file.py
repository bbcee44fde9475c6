"""The files of shards: every column survives, and analysis tools and spreadsheets can open them."""

import csv
import io
import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import InputError, OutputError
from serve.jobs.shard_file import COLUMNS, ModelInfo, Shard, read_rows, read_shard, write_shard
from tests.serve.jobs.tables import rows_of
from tureen.bundle.strength_curve import StrengthCurve


def live(cell):
    """What a cell of text says, without the apostrophe in front."""
    return cell[1:] if cell.startswith("'") else cell


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_table_opens_in_a_spreadsheet_without_running_anything(run_batch, photos, tmp_path, format):
    image = sorted(photos.rglob("*.png"))[0].read_bytes()
    payloads = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "＝1", "'quoted", "plain", '=cmd|"/c calc"!A0', ""]
    with (tmp_path / "list.jsonl").open("w") as file:
        for n, payload in enumerate(payloads):
            name = f"{n}.png"
            (tmp_path / name).write_bytes(image if n % 2 else b"no image")
            file.write(json.dumps({"path": name, "id": payload}) + "\n")
    arguments = (tmp_path / "list.jsonl", tmp_path / "out", "--format", format)
    assert run_batch(*arguments) == 0
    (part,) = (tmp_path / "out").glob("part-*")
    ids = [payload or f"{len(payloads) - 1}.png" for payload in payloads]
    if format == "csv":
        for row in csv.reader(io.StringIO(part.read_text())):
            for cell in row:
                assert cell.strip()[:1] not in tuple("=+@-＝＋－＠") or cell[:1].isdigit(), cell
        assert [live(row["id"]) for row in rows_of(tmp_path / "out")] == ids
        probabilities = [float(row["probability"]) for row in rows_of(tmp_path / "out") if row["probability"]]
        assert len(probabilities) == 5
    else:
        assert [row["id"] for row in rows_of(tmp_path / "out")] == ids
    for n in range(0, len(payloads), 2):
        (tmp_path / f"{n}.png").write_bytes(image)
    assert run_batch(*arguments, "--retry-failed") == 0
    assert {row["status"] for row in rows_of(tmp_path / "out")} == {"ok"}
    assert [live(row["id"]) if format == "csv" else row["id"] for row in rows_of(tmp_path / "out")] == ids


def test_pandas_polars_and_duckdb_read_the_shards(run_batch, photos, tmp_path):
    (photos / "words.jpg").write_bytes(b"words")
    assert run_batch(photos, tmp_path / "out", "--shard-rows", 10) == 0
    glob = str(tmp_path / "out" / "*.parquet")
    frame = pd.read_parquet(tmp_path / "out")
    other = pl.read_parquet(glob)
    query = f"select count(*), count(label), avg(probability), count(distinct top_k[1].label) from '{glob}'"
    rows, labels, mean, _ = duckdb.sql(query).fetchall()[0]
    assert (rows, labels) == (len(frame), frame.label.notna().sum()) == (len(other), other["label"].count()) == (24, 23)
    assert mean == pytest.approx(frame.probability.mean()) == pytest.approx(other["probability"].mean())
    spark = {pa.string(), pa.int32(), pa.float64()}
    schema = pq.read_schema(next((tmp_path / "out").glob("part-*")))
    assert all(field.type in spark or pa.types.is_list(field.type) for field in schema)


def test_text_of_any_kind_survives_csv(run_batch, photos, tmp_path):
    odd = ["a\rb", "x\r=1+1", "x\n=1+1", '"', "y" * 4096, "a,b;c\td", "\N{ZERO WIDTH SPACE}=1"]
    names = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[: len(odd)]
    rows = [{"path": name, "id": identity} for name, identity in zip(names, odd, strict=True)]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run_batch(tmp_path / "odd.jsonl", tmp_path / "out", "--format", "csv") == 0
    with (tmp_path / "out" / "part-00000.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == odd
    assert run_batch(tmp_path / "odd.jsonl", tmp_path / "out", "--resume") == 0
    assert len(pd.read_csv(tmp_path / "out" / "part-00000.csv")) == len(odd)
    (tmp_path / "long.jsonl").write_text(json.dumps({"path": names[0], "id": "y" * 4097}))
    with pytest.raises(InputError, match="4,096"):
        run_batch(tmp_path / "long.jsonl", tmp_path / "other")


CURVE = StrengthCurve(betas=[0, 0.5, 1], strengths=[0, 0.2, 1], n=9)
INFO = ModelInfo(("cat", "dog", "fox"), "pets", "v1", engine="onnxruntime", precision="fp32", strength=CURVE)
LOGITS = np.array([[0, 2, 1], [3, 0, 3]], np.float32)


def filled_shard():
    """Three rows: two with classes, one with an error."""
    shard = Shard(3, top_k=2)
    for n, name in enumerate(("=1+1", "b", "c")):
        shard.ids[n], shard.paths[n] = name, f"photos/{name}.png"
    shard.sha256[:2], shard.betas[:] = ["aa", "bb"], [0.0, 0.5, None]
    shard.error_codes[2], shard.errors[2] = "unreadable_image", "it cannot be read"
    shard.fill([0, 1], LOGITS, np.ones(2))
    return shard


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_a_shard_that_is_read_back_has_the_rows_that_were_written(tmp_path, format):
    shard, path = filled_shard(), tmp_path / f"part.{format}"
    write_shard(path, shard, INFO, format, {"tureen.model": "pets"})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert read_rows(path, format) == list(shard.rows(INFO))
    assert all(tuple(row) == COLUMNS for row in read_rows(path, format))
    assert [row["strength"] for row in read_rows(path, format)] == [0, 0.2, None]
    again = read_shard(path, format, top_k=2)
    assert list(again.rows(INFO)) == list(shard.rows(INFO))
    assert again.failed_rows == shard.failed_rows == [2]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_a_shard_of_an_earlier_version_without_strengths_is_read(tmp_path, format):
    shard, path = filled_shard(), tmp_path / f"part.{format}"
    write_shard(path, shard, INFO, format, {})
    if format == "parquet":
        pq.write_table(pq.read_table(path).drop_columns("strength"), path)
    elif format == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "strength"}) + "\n" for row in rows))
    else:
        pd.read_csv(path, dtype=str).drop(columns="strength").to_csv(path, index=False)
    assert list(read_shard(path, format, top_k=2).rows(INFO)) == list(shard.rows(INFO))


def test_classes_are_sorted_by_probability_and_ties_keep_the_order_of_the_labels():
    first, second, failed = filled_shard().rows(INFO)
    assert [one["label"] for one in first["top_k"]] == ["dog", "fox"]
    assert [one["label"] for one in second["top_k"]] == ["cat", "fox"]
    assert (second["label"], second["index"]) == ("cat", 0)
    assert second["probability"] == pytest.approx(float(np.exp(3) / (2 * np.exp(3) + 1)))
    assert (failed["status"], failed["label"], failed["top_k"]) == ("error", None, None)


def test_each_row_has_its_own_temperature():
    shard = Shard(2, top_k=1)
    shard.fill([1, 0], np.array([[2, 0, 0], [0, 6, 0]], np.float32), np.array([1, 3]))
    assert shard.indices[:, 0].tolist() == [1, 0]
    assert shard.probabilities[:, 0] == pytest.approx([np.exp(2) / (np.exp(2) + 2)] * 2)


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("parquet", None),
        ("parquet", b""),
        ("parquet", b"PAR1"),
        ("jsonl", None),
        ("jsonl", b"{"),
        ("jsonl", b'{"id": "1"}\n'),
        ("csv", None),
        ("csv", b"id,path\r\n1,2\r\n"),
        ("csv", b"\xff"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path, format, content):
    path = tmp_path / f"part.{format}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match=f"part.{format} cannot be read back"):
        read_shard(path, format, top_k=2)
