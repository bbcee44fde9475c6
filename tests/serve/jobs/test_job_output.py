"""A job in its output directory: how it starts, resumes and ends, and what stops it."""

import json

import pytest

import serve.inference.decode_process
import serve.jobs.decoding
from serve.errors import JobStoppedError, OutputError
from serve.jobs.job_output import SUCCESS_FILE
from tests.serve.jobs.tables import rows_of
from tureen.errors import TureenError


def test_only_failed_rows_are_retried(run_batch, photos, tmp_path, monkeypatch):
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


def test_a_job_resumes_unchanged_or_not_at_all(run_batch, photos, tmp_path):
    out = tmp_path / "out"
    assert run_batch(photos, out, "--shard-rows", 8, "--beta", 0.7) == 0
    with pytest.raises(OutputError, match="holds a job already"):
        run_batch(photos, out)
    for other, message in ((("--beta", 0.6), "betas was"), (("--top-k", 2), "top_k"), (("--format", "csv"), "format")):
        with pytest.raises(OutputError, match=message):
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


def test_too_many_errors_stop_a_job_which_resumes_on_request(run_batch, photos, tmp_path):
    for n in range(200):
        (photos / f"z {n:03}.jpg").write_bytes(b"no image")
    arguments = (photos, tmp_path / "out", "--shard-rows", 50)
    with pytest.raises(JobStoppedError, match="77 of 100 rows are errors"):
        run_batch(*arguments, "--max-error-rate", 0.5)
    assert not (tmp_path / "out" / SUCCESS_FILE).exists()
    assert run_batch(*arguments, "--resume") == 0


def test_an_output_that_a_link_in_the_input_leads_to_is_refused(run_batch, photos, tmp_path):
    (photos / "all").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="inside the input"):
        run_batch(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refused_job_leaves_no_file(run_batch, photos, tmp_path):
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


def test_a_refused_job_changes_nothing_of_a_started_one(run_batch, photos, tmp_path):
    arguments = (photos, tmp_path / "out")
    assert run_batch(*arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    names = sorted((tmp_path / "out").rglob("*"))
    for options in ((), ("--resume", "--top-k", "2"), ("--resume", "--betas", "0,0")):
        with pytest.raises(TureenError):
            run_batch(*arguments, *options)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert sorted((tmp_path / "out").rglob("*")) == names


def test_the_error_rate_applies_at_the_end_and_to_earlier_shards(run_batch, photos, tmp_path):
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


def test_a_missing_input_stops_the_job(run_batch, tmp_path):
    (tmp_path / "x.csv").write_text("path\n" + "".join(f"gone/{n}.jpg\n" for n in range(300)))
    with pytest.raises(JobStoppedError, match="check that the input has not moved"):
        run_batch(tmp_path / "x.csv", tmp_path / "out", "--shard-rows", 100)


def test_an_output_inside_the_input_or_outside_a_directory_is_refused(run_batch, photos, tmp_path, capsys):
    with pytest.raises(OutputError, match="inside the input"):
        run_batch(photos, photos / "a" / "out")
    with pytest.raises(SystemExit):
        run_batch(photos, "s3://bucket/out")
    assert "directory of this machine" in capsys.readouterr().err


def test_a_job_that_decoded_jpeg_at_a_fraction_of_its_size_is_not_continued_and_any_other_earlier_job_is(
    run_batch, photos, tmp_path
):
    """--jpeg-scaling was an option of earlier versions, and job.json names it."""
    out = tmp_path / "out"
    assert run_batch(photos, out) == 0
    job = out / "_job" / "job.json"
    stored = json.loads(job.read_text())
    assert stored["jpeg_scaling"] is False
    assert run_batch(photos, out, "--resume") == 0
    job.write_text(json.dumps({**stored, "jpeg_scaling": True}))
    with pytest.raises(OutputError, match="another version: give another directory"):
        run_batch(photos, out, "--resume")
