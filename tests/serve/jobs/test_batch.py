"""`tureen batch`: every kind of input, the rows that come of it, and what it refuses."""

import codecs
import csv
import glob
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.inference.decode_process
import serve.jobs.decoding
import tureen
from serve.commands.batch import batch
from serve.errors import InputError, JobError, JobStoppedError, OutputError
from serve.http.problems import KINDS
from serve.jobs.input_sources import open_source
from serve.jobs.job_output import SUCCESS_FILE
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.tables import rows_of
from tureen.errors import TureenError


def packed(photos, path):
    """The photos in an archive, under their names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(photos.rglob("*.*")):
                archive.write(file, file.relative_to(photos))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for file in sorted(photos.rglob("*.*")):
                archive.add(file, file.relative_to(photos))
    return path


def listed(photos, path):
    """A manifest of the photos."""
    table = pd.DataFrame({"path": [f"photos/{file.relative_to(photos)}" for file in sorted(photos.rglob("*.*"))]})
    table["id"] = [str(n) for n in range(len(table))]
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path


FILES = ["x.tar", "x.tar.gz", "x.zip", "x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize(
    "kind", ["glob", *FILES, "file://", "memory://", *(f"memory://{name}" for name in FILES), "urls.csv"]
)
def test_every_kind_of_input_gives_the_rows_of_the_folder(run_batch, photos, tmp_path, kind):
    assert run_batch(photos, tmp_path / "one") == 0
    if kind == "glob":
        given = f"{photos}/**/*.*"
    elif kind == "file://":
        given = f"file://{photos}"
    elif kind == "memory://":
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.put(str(photos), "/bucket", recursive=True)
        given = "memory://bucket"
    elif kind.startswith("memory://"):
        import fsspec

        memory, name = fsspec.filesystem("memory"), kind.removeprefix("memory://")
        memory.put(str(photos), "/far/photos", recursive=True)
        memory.put(
            str((packed if name.endswith(("tar", "gz", "zip")) else listed)(photos, tmp_path / name)), f"/far/{name}"
        )
        given = f"memory://far/{name}"
    elif kind == "urls.csv":
        table = pd.read_csv(listed(photos, tmp_path / kind))
        table["path"] = [f"file://{tmp_path}/{path}" for path in table["path"]]
        table.to_csv(tmp_path / kind, index=False)
        given = tmp_path / kind
    else:
        given = (packed if "." in kind and kind.endswith(("tar", "gz", "zip")) else listed)(photos, tmp_path / kind)
    assert run_batch(given, tmp_path / "other") == 0
    one, other = rows_of(tmp_path / "one"), rows_of(tmp_path / "other")
    assert len(other) == 23
    for row in (*one, *other):
        del row["id"], row["path"]
    assert other == one


def test_each_row_is_what_the_model_says_alone_at_each_beta(run_batch, photos, tmp_path):
    assert (
        run_batch(photos, tmp_path / "out", "--betas", "0:1:0.25", "--top-k", 3, "--shard-rows", 40, "--max-batch", 7)
        == 0
    )
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 23 * 5
    assert len(list((tmp_path / "out").glob("part-*"))) == 3
    with tureen.load(BUNDLE, engine="onnxruntime") as soup:
        for row in rows:
            (alone,) = soup.classify([photos / row["path"]], beta=row["beta"], top_k=3)
            assert [one["label"] for one in row["top_k"]] == [one.label for one in alone.predictions]
            assert row["probability"] == pytest.approx(alone.predictions[0].probability, abs=1e-5)
            assert (row["label"], row["index"]) == (row["top_k"][0]["label"], row["top_k"][0]["index"])
    summary = json.loads((tmp_path / "out" / SUCCESS_FILE).read_text())
    assert (summary["images"], summary["rows"], summary["failed_rows"]) == (23, 115, 0)
    metadata = pq.read_schema(tmp_path / "out" / "part-00000.parquet").metadata
    assert metadata[b"tureen.fingerprint"].decode() == summary["fingerprint"]
    assert json.loads(metadata[b"tureen.betas"]) == [0, 0.25, 0.5, 0.75, 1]


def test_a_manifest_has_a_beta_for_each_image(run_batch, photos, tmp_path):
    names = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[:4]
    lines = [f"{name},{beta}" for name, beta in zip(names, ("0.25", "", "robust", "0"), strict=True)]
    (tmp_path / "list.csv").write_text("path,beta\n" + "\n".join(lines))
    assert run_batch(tmp_path / "list.csv", tmp_path / "out", "--beta", 0.5) == 0
    assert [row["beta"] for row in rows_of(tmp_path / "out")] == [0.25, 0.5, 1.0, 0.0]
    with pytest.raises(InputError, match="its own β"):
        run_batch(tmp_path / "list.csv", tmp_path / "grid", "--betas", "0,1")


def test_what_is_no_image_is_a_row_with_an_error_and_the_others_are_classified(run_batch, photos, tmp_path):
    odd = {
        "empty.jpg": (b"", "empty_image"),
        "words.jpg": (b"these are words", "unsupported_image_type"),
        "half.png": (sorted(photos.rglob("*.png"))[0].read_bytes()[:90], "undecodable_image"),
        "large.jpg": (b"\xff\xd8\xff" + bytes(30_000), "image_too_large"),
    }
    for name, (content, _) in odd.items():
        (photos / name).write_bytes(content)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "nowhere.jpg").symlink_to(tmp_path / "gone")
    (photos / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"x")
    arguments = ("--max-image-bytes", max(file.stat().st_size for file in photos.rglob("image*.*")))
    assert run_batch(photos, tmp_path / "out", *arguments) == 0
    codes = {row["path"]: row["error_code"] for row in rows_of(tmp_path / "out") if row["status"] == "error"}
    wanted = {name: code for name, (_, code) in odd.items()}
    wanted |= {
        "pipe.jpg": "unreadable_image",
        "nowhere.jpg": "unreadable_image",
        "\\xff\\xfe.jpg": "unsupported_image_type",
    }
    assert codes == wanted
    summary = json.loads((tmp_path / "out" / SUCCESS_FILE).read_text())
    assert summary["images"] == 30
    assert summary["failed_rows"] == sum(summary["error_codes"].values()) == 7


def test_what_failed_is_tried_again_and_nothing_else(run_batch, photos, tmp_path, monkeypatch):
    whole = sorted(photos.rglob("*.png"))[0]
    content = whole.read_bytes()
    whole.write_bytes(content[:90])
    arguments = (photos, tmp_path / "out", "--betas", "0,1", "--shard-rows", 8)
    assert run_batch(*arguments) == 0
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
    assert sum(row["status"] == "error" for row in rows_of(tmp_path / "out")) == 2
    whole.write_bytes(content)
    read = []
    real = serve.inference.decode_process.pixels_from_bytes
    monkeypatch.setattr(
        serve.inference.decode_process,
        "pixels_from_bytes",
        lambda data, *a, **b: read.append(data) or real(data, *a, **b),
    )
    assert run_batch(*arguments, "--retry-failed") == 0
    assert read == [content]
    assert sum(path.stat().st_ino != before[path] for path in before) == 1
    assert run_batch(photos, tmp_path / "fresh", *arguments[2:]) == 0
    again, fresh = rows_of(tmp_path / "out"), rows_of(tmp_path / "fresh")
    for row, other in zip(again, fresh, strict=True):
        assert row["label"] == other["label"]
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_a_job_goes_on_as_it_is_or_not_at_all(run_batch, photos, tmp_path):
    out = tmp_path / "out"
    assert run_batch(photos, out, "--shard-rows", 8, "--beta", 0.7) == 0
    with pytest.raises(OutputError, match="holds a job already"):
        run_batch(photos, out)
    for other, told in ((("--beta", 0.6), "betas was"), (("--top-k", 2), "top_k"), (("--format", "csv"), "format")):
        with pytest.raises(OutputError, match=told):
            run_batch(photos, out, "--resume", *other)
    rows = rows_of(out)
    (out / "part-00001.parquet").unlink()
    assert run_batch(photos, out, "--resume") == 0
    assert rows_of(out) == rows
    (photos / "one more.png").write_bytes(b"")
    with pytest.raises(OutputError, match="inputs was"):
        run_batch(photos, out, "--resume")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        run_batch(photos, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_too_many_errors_stop_a_job_which_goes_on_when_told(run_batch, photos, tmp_path):
    for n in range(200):
        (photos / f"z {n:03}.jpg").write_bytes(b"no image")
    arguments = (photos, tmp_path / "out", "--shard-rows", 50)
    with pytest.raises(JobStoppedError, match="77 of 100 rows are errors"):
        run_batch(*arguments, "--max-error-rate", 0.5)
    assert not (tmp_path / "out" / SUCCESS_FILE).exists()
    assert run_batch(*arguments, "--resume") == 0


def live(cell):
    """What a cell of text says, without the apostrophe in front."""
    return cell[1:] if cell.startswith("'") else cell


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,id,beta\nimage.png,first,1\n"),
        ("list.jsonl", '{"path": "image.png", "id": "first", "beta": 1}\n'),
        ("list.jsonl", '\n{"path": "image.png", "id": "first", "beta": 1}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_manifest(run_batch, photos, tmp_path, name, text):
    (tmp_path / "image.png").write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes())
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert run_batch(tmp_path / name, tmp_path / "out") == 0
    assert [(row["id"], row["status"]) for row in rows_of(tmp_path / "out")] == [("first", "ok")]


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


def test_one_token_has_no_beta_and_a_missing_input_is_named(run_batch, photos, tmp_path, monkeypatch):
    for given, told in ((tmp_path / "none", "there is no"), (sorted(photos.rglob("*.png"))[0], "is one file")):
        with pytest.raises(InputError, match=told):
            run_batch(given, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        run_batch(tmp_path / "empty", tmp_path / "out")
    for name, content in (
        ("a.csv", "file\nx"),
        ("a.jsonl", '{"path": 1}'),
        ("a.jsonl", "nope"),
        ("a.parquet", "x"),
        ("a.zip", "x"),
        ("a.tar", "x"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError):
            run_batch(tmp_path / name, tmp_path / "out")


def test_an_engine_that_fails_on_one_image_costs_one_row_and_one_that_fails_on_all_the_job(
    run_batch, photos, tmp_path, monkeypatch
):
    broken = set()
    real = tureen.Soup.logits

    def logits(self, pixels, betas):
        if not broken or any(row.tobytes() in broken for row in pixels):
            raise RuntimeError("of a runtime")
        return real(self, pixels, betas)

    monkeypatch.setattr(tureen.Soup, "logits", logits)
    with pytest.raises(JobError, match="fails on every image"):
        run_batch(photos, tmp_path / "all")
    spec = tureen.bundle.bundle.load_bundle(BUNDLE).manifest.preprocess
    first = sorted(photos.rglob("*.png"))[0]
    broken.add(tureen.preprocess.pixels_from_bytes(first.read_bytes(), spec).tobytes())
    assert run_batch(photos, tmp_path / "one") == 0
    failed = [row for row in rows_of(tmp_path / "one") if row["status"] == "error"]
    assert [(row["path"], row["error_code"]) for row in failed] == [
        (str(first.relative_to(photos)), "inference_failed")
    ]


def test_the_codes_are_those_of_the_server():
    for cls, code in serve.jobs.decoding.ERROR_CODES.items():
        if cls in KINDS:
            assert KINDS[cls].code == code


@pytest.fixture
def photos_tar(photos, tmp_path):
    return packed(photos, tmp_path / "photos.tar")


def headers_of(archive):
    with tarfile.open(archive) as opened:
        return [member.offset for member in opened]


@pytest.mark.parametrize("how", ["a bit of a header", "cut in a header", "cut in an image", "another archive after it"])
def test_a_tar_that_is_damaged_is_refused_and_loses_no_image(run_batch, photos_tar, tmp_path, how):
    whole, header = photos_tar.read_bytes(), headers_of(photos_tar)[10]
    damaged = {
        "a bit of a header": whole[: header + 150] + bytes([whole[header + 150] ^ 1]) + whole[header + 151 :],
        "cut in a header": whole[: header + 100],
        "cut in an image": whole[: header + 600],
        "another archive after it": whole + whole,
    }[how]
    photos_tar.write_bytes(damaged)
    with pytest.raises(InputError, match=r"photos\.tar"):
        run_batch(photos_tar, tmp_path / "out")


def test_a_compressed_tar_of_several_parts_is_read_to_its_end(run_batch, photos_tar, tmp_path):
    whole, header = photos_tar.read_bytes(), headers_of(photos_tar)[10]
    (tmp_path / "parts.tar.gz").write_bytes(gzip.compress(whole[:header]) + gzip.compress(whole[header:]))
    assert run_batch(tmp_path / "parts.tar.gz", tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 23


def linked_folders(photos, tmp_path):
    """Photos with links to folders: one within, one to elsewhere, two upwards, one to itself."""
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "a" / "image 00.png", tmp_path / "elsewhere" / "x.png")
    (photos / "b" / "alias").symlink_to("../a")
    (photos / "c" / "outside").symlink_to(tmp_path / "elsewhere")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "a" / "here").symlink_to(".")
    (photos / "self").symlink_to("self")
    return sorted(
        [str(file.relative_to(photos)) for file in photos.glob("?/image*")]
        + [f"b/alias/{file.name}" for file in photos.glob("a/image*")]
        + ["c/outside/x.png"]
    )


def test_links_to_folders_are_followed_once_and_never_upwards(run_batch, photos, tmp_path):
    wanted = linked_folders(photos, tmp_path)
    assert run_batch(photos, tmp_path / "out") == 0
    rows = {row["path"]: row["status"] for row in rows_of(tmp_path / "out")}
    assert rows.pop("self") == "error"
    assert rows == dict.fromkeys(wanted, "ok")
    assert run_batch(photos, tmp_path / "out", "--resume") == 0
    for n, pattern in enumerate((f"{photos}/**/*.*", f"{photos}/**", f"file://{photos}/**/*.*")):
        assert run_batch(pattern, tmp_path / str(n)) == 0
        found = [os.path.relpath(row["path"], photos) for row in rows_of(tmp_path / str(n))]
        assert sorted(name for name in found if name != "self") == wanted


def test_an_output_that_a_link_in_the_input_leads_to_is_refused(run_batch, photos, tmp_path):
    (photos / "all").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="inside the input"):
        run_batch(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*/*.png", {"a/1.png", "b/3.png"}),
        ("**/*.png", {"a/1.png", "b/3.png", "b/c/4.png", "0.png"}),
        ("**", {"a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png", "0.png"}),
        ("b/**/*.png", {"b/3.png", "b/c/4.png"}),
        ("**/c/**/*.png", {"b/c/4.png"}),
        ("[ab]/?.*", {"a/1.png", "a/2.jpg", "b/3.png"}),
        ("*/2.jpg", {"a/2.jpg"}),
        ("*/c/*", {"b/c/4.png"}),
        ("./*/../a/[1]*", {"./a/../a/1.png", "./b/../a/1.png"}),
        (".h/*.png", {".h/5.png"}),
        (".*/*.png", {".h/5.png"}),
        ("*/none/*.png", set()),
        ("*", {"0.png"}),
        ("*.jpg", set()),
    ],
)
def test_a_glob_matches_as_pythons_does(tmp_path, monkeypatch, pattern, found):
    for name in ("a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png", ".h/5.png", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Thumbs.db").touch()
    monkeypatch.chdir(tmp_path)
    for start in ("", f"{tmp_path}/"):
        ours = {item.path for item in open_source(f"{start}{pattern}").list_images()}
        pythons = {name for name in glob.glob(f"{start}{pattern}", recursive=True) if os.path.isfile(name)}
        assert ours == pythons - {f"{start}Thumbs.db"} == {f"{start}{name}" for name in found}


def test_files_of_macos_and_windows_are_no_images(run_batch, photos, tmp_path):
    (photos / "__MACOSX").mkdir()
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "a/thumbs.db",
        "a/desktop.ini",
        "a/._image 00.png",
        "__MACOSX/x.png",
        "Icon\r",
    ):
        (photos / name).write_bytes(b"x")
    for n, given in enumerate((photos, packed(photos, tmp_path / "x.zip"), packed(photos, tmp_path / "x.tar"))):
        assert run_batch(given, tmp_path / str(n)) == 0
        assert [row["status"] for row in rows_of(tmp_path / str(n))] == ["ok"] * 23


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_refused_and_never_the_current_folder(run_batch, photos, tmp_path, monkeypatch, capsys, empty):
    monkeypatch.chdir(photos)
    with pytest.raises(InputError, match="INPUT is empty"):
        run_batch(empty, tmp_path / "out")
    with pytest.raises(SystemExit):
        run_batch(photos, empty)
    with pytest.raises(SystemExit):
        batch([empty, str(photos), str(tmp_path / "out")])
    assert capsys.readouterr().err.count("it is empty: give a directory") == 2
    assert not (tmp_path / "out").exists()
    assert {path.name for path in photos.iterdir()} == {"a", "b", "c"}


def test_a_job_that_is_refused_leaves_nothing(run_batch, photos, tmp_path):
    mine, new = tmp_path / "mine", tmp_path / "x" / "y" / "new"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("file\nx.png\n")
    refusals = (
        (mine, photos, ()),
        (new, tmp_path / "none", ()),
        (new, tmp_path / "empty", ()),
        (new, tmp_path / "bad.csv", ()),
        (new, photos, ("--betas", "0,0")),
        (new, photos, ("--precision", "int8")),
        (tmp_path / "empty", tmp_path / "empty", ()),
        (tmp_path / "empty", photos, ("--betas", "0,0")),
    )
    before = sorted(tmp_path.rglob("*"))
    for output, given, options in refusals:
        with pytest.raises(TureenError):
            run_batch(given, output, *options)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_job_takes_nothing_from_one_that_has_begun(run_batch, photos, tmp_path):
    arguments = (photos, tmp_path / "out")
    assert run_batch(*arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    names = sorted((tmp_path / "out").rglob("*"))
    for options in ((), ("--resume", "--top-k", "2"), ("--resume", "--betas", "0,0")):
        with pytest.raises(TureenError):
            run_batch(*arguments, *options)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert sorted((tmp_path / "out").rglob("*")) == names


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_may_begin_with_a_byte_order_mark(run_batch, photos, tmp_path, kind):
    path = listed(photos, tmp_path / f"x.{kind}")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert run_batch(path, tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 23
    path.write_text(path.read_text("utf-8-sig"), "utf-16")
    with pytest.raises(InputError, match="is not in UTF-8"):
        run_batch(path, tmp_path / "other")


def test_the_error_rate_holds_at_the_end_and_for_what_was_done_before(run_batch, photos, tmp_path):
    for n in range(150):
        (photos / f"{n}.jpg").write_bytes(b"no image")
    arguments = (photos, tmp_path / "out", "--max-error-rate", 0.05)
    for again in ((), ("--resume",), ("--resume",)):
        with pytest.raises(JobStoppedError):
            run_batch(*arguments, *again)
        assert not (tmp_path / "out" / SUCCESS_FILE).exists()
    assert run_batch(photos, tmp_path / "out", "--resume") == 0
    few = tmp_path / "few"
    few.mkdir()
    (few / "x.jpg").write_bytes(b"no image")
    with pytest.raises(JobStoppedError):
        run_batch(few, tmp_path / "two", "--max-error-rate", 0)


def test_an_input_that_is_not_there_any_more_stops_the_job(run_batch, tmp_path):
    (tmp_path / "x.csv").write_text("path\n" + "".join(f"gone/{n}.jpg\n" for n in range(300)))
    with pytest.raises(JobStoppedError, match="still where it was"):
        run_batch(tmp_path / "x.csv", tmp_path / "out", "--shard-rows", 100)


def test_an_output_that_is_in_the_input_or_no_directory_here_is_refused(run_batch, photos, tmp_path, capsys):
    with pytest.raises(OutputError, match="inside the input"):
        run_batch(photos, photos / "a" / "out")
    with pytest.raises(SystemExit):
        run_batch(photos, "s3://bucket/out")
    assert "directory of this machine" in capsys.readouterr().err


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


def test_a_row_at_a_store_that_is_not_known_is_an_error_and_no_dead_job(run_batch, photos, tmp_path):
    name = sorted(str(file.relative_to(tmp_path)) for file in photos.rglob("*.*"))[0]
    (tmp_path / "x.csv").write_text(f"path\n{name}\nnonsense://x/y.jpg\n")
    assert run_batch(tmp_path / "x.csv", tmp_path / "out") == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok", "error"]


def test_hidden_files_are_left_out_however_they_come(run_batch, photos, tmp_path):
    (photos / ".thumbs").mkdir()
    (photos / ".thumbs" / "x.jpg").write_bytes(b"x")
    for n, given in enumerate((photos, packed(photos, tmp_path / "x.tar"), f"file://{photos}")):
        assert run_batch(given, tmp_path / str(n)) == 0
        rows = rows_of(tmp_path / str(n))
        assert len(rows) == 23
        assert rows[0]["path"] == "a/image 00.png"


def test_a_folder_of_any_depth_that_has_a_name_is_listed(run_batch, tmp_path, photos):
    deep = below = tmp_path / "deep"
    try:
        for _ in range(1100):  # more than Python's calls may be nested
            below.mkdir()
            below /= "d"
        (deep / "x.png").write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes())
        assert run_batch(deep, tmp_path / "out") == 0
        assert len(rows_of(tmp_path / "out")) == 1
    finally:
        subprocess.run(["rm", "-r", deep], check=True)  # as pytest itself could not, later
