"""`tureen batch` from the command line to its rows."""

import json

import pyarrow.parquet as pq
import pytest

import tureen
from serve.commands.batch import batch
from serve.errors import InputError, OutputError
from serve.jobs.job_output import SUCCESS_FILE
from tests.learned_tokens import make_token
from tests.serve.jobs.conftest import BUNDLE, photos, run_batch  # noqa: F401 - fixtures
from tests.serve.jobs.tables import rows_of
from tureen.bundle.bundle import load_bundle
from tureen.bundle.token_file import write_token
from tureen.errors import UnknownTokenError


def test_each_row_equals_the_result_of_a_single_image_at_each_beta(run_batch, photos, tmp_path):  # noqa: F811
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


def test_a_strength_is_stored_as_its_beta(run_batch, photos, tmp_path, capsys):  # noqa: F811
    assert run_batch(photos, tmp_path / "out", "--strength", "0.5") == 0
    curve = load_bundle(BUNDLE).manifest.strength
    assert {row["beta"] for row in rows_of(tmp_path / "out")} == {curve.beta_at(0.5)}
    for arguments in (("--strength", "0.5", "--beta", "0.5"), ("--strength", "robust")):
        with pytest.raises(SystemExit):
            run_batch(photos, tmp_path / "other", *arguments)
    assert "give a number from 0 (clean mode)" in capsys.readouterr().err


def test_every_image_is_classified_at_a_token_or_a_mix(run_batch, photos, tmp_path, capsys):  # noqa: F811
    with tureen.load(BUNDLE, engine="onnxruntime") as soup:
        token = make_token(soup, "fog", 1)
        soup.add_tokens([token])
        write_token(tmp_path / "fog.token", token)
        chosen = ("--token", "fog", "--beta", "0.25", "--token-file", tmp_path / "fog.token")
        assert run_batch(photos, tmp_path / "out", *chosen) == 0
        assert "mix fog:0.75,robust:0.25" in capsys.readouterr().out
        for row in rows_of(tmp_path / "out"):
            (alone,) = soup.classify([photos / row["path"]], 0.25, token="fog")
            assert (row["label"], row["beta"], row["strength"]) == (alone.predictions[0].label, 0.25, None)
            assert row["probability"] == pytest.approx(alone.predictions[0].probability, abs=1e-5)
    metadata = pq.read_schema(tmp_path / "out" / "part-00000.parquet").metadata
    assert (metadata[b"tureen.mix"], metadata[b"tureen.calibrated"]) == (b"fog:0.75,robust:0.25", b"false")
    with pytest.raises(UnknownTokenError, match="no token 'fog'"):
        run_batch(photos, tmp_path / "out", "--resume")
    assert run_batch(photos, tmp_path / "out", "--resume", "--token-file", tmp_path / "fog.token") == 0
    with pytest.raises(OutputError, match="mix was"):
        run_batch(photos, tmp_path / "out", "--resume", "--mix", "fog:1", "--token-file", tmp_path / "fog.token")
    assert run_batch(photos, tmp_path / "both", "--mix", "clean:1,robust:3") == 0
    assert {(row["beta"], row["strength"] is None) for row in rows_of(tmp_path / "both")} == {(0.75, False)}
    with pytest.raises(SystemExit):
        run_batch(photos, tmp_path / "other", "--token", "fog", "--mix", "fog:1")
    assert "--token goes with --beta or --strength only" in capsys.readouterr().err


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_refused_and_never_the_current_folder(run_batch, photos, tmp_path, monkeypatch, capsys, empty):  # noqa: F811
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beta", "1.8"], "1.8"),
        (["--beta", "0.5", "--betas", "0,1"], "not allowed with"),
        (["--betas", "0:2:1"], "β is '2'"),
        (["--top-k", "0"], "--top-k"),
        (["--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["--max-error-rate", "1.1"], "'1.1' is not between 0 and 1"),
        (["--max-error-rate", "nan"], "'nan' is not between 0 and 1"),
        (["--max-error-rate", "many"], "'many' is not between 0 and 1"),
        (["--shard-rows", "-1"], "--shard-rows"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value_before_a_file_is_read(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        batch([str(BUNDLE), "no-such-input", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_url_is_refused(capsys):
    with pytest.raises(SystemExit):
        batch([str(BUNDLE), "photos", "s3://bucket/out"])
    assert "copy the shards to the URL afterwards" in capsys.readouterr().err
