"""`tureen adapt`: a token that wins is written, β is kept otherwise, and wrong input changes nothing."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tureen
from export.commands import adapt as command
from tests.conftest import draw_signs
from training.adapt.cross_validation import RUNS
from training.adapt.saved_runs import SavedAdaptation
from training.evaluation.corruptions import corrupt
from tureen.bundle.token_file import read_token
from tureen.cli import main

QUICK = ["--steps", "2", "--epsilon-255", "0", "--name", "fog"]


@pytest.fixture(scope="module")
def foggy(tmp_path_factory):
    """Ten drawn signs in fog: five classes, two images each."""
    drawn, root = (tmp_path_factory.mktemp(name) for name in ("drawn", "foggy"))
    draw_signs(drawn)
    for folder in sorted(drawn.iterdir())[:5]:
        for file in sorted(folder.iterdir())[::7]:
            pixels = corrupt(np.asarray(Image.open(file))[None], "fog", 4, seed=1)[0]
            (root / folder.name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / folder.name / file.name)
    return root


@pytest.fixture
def adapt(foggy, tmp_path, monkeypatch, capsys):
    """A function that runs the command in an empty directory; returns the exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, data=foggy, bundle="signs"):
        try:
            status = main(["adapt", str(bundle), "--data", str(data), *arguments])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_beta_is_kept_where_the_token_does_not_win(adapt, tmp_path):
    status, out, err = adapt(*QUICK)
    assert status == 0
    assert "the token is not significantly better than the best β, so β = " in out
    assert "no file is written; next: tureen classify IMAGE --bundle signs --beta " in out
    assert "learn: 100%" in err
    assert list(tmp_path.iterdir()) == []
    status, out, _ = adapt(*QUICK, "--json")
    report = json.loads(out)
    assert (report["kept"], report["file"], report["images"], status) == ("beta", None, 10, 0)
    assert report["accuracy"][0]["n"] == 10


def test_a_forced_token_is_loaded_by_an_engine_and_the_seed_repeats_it(adapt, foggy, tmp_path):
    options = ["--steps", "5", "--name", "fog", "--force", "--seed", "3", "--epsilon-255", "32"]
    status, out, _ = adapt(*options, "--out", "a/fog.token")
    assert status == 0
    assert "a/fog.token; next: tureen classify IMAGE --bundle signs --token-file a/fog.token --token fog" in out
    token = read_token(tmp_path / "a" / "fog.token")
    record = token.record
    assert (record.name, record.model, record.images, record.seed) == ("fog", "signs", 10, 3)
    assert [(row.attack, row.epsilon_255) for row in record.accuracy] == [
        (None, 0),
        ("APGD-5 (CE, targeted DLR)", 32),
    ]
    images = sorted(map(str, foggy.rglob("*.png")))[:2]
    with tureen.load("signs", engine="onnxruntime", precision="fp32", tokens=[token]) as soup:
        assert len(soup.classify(images, token="fog")) == 2
    adapt(*options, "--out", "b.token")
    assert (tmp_path / "b.token").read_bytes() == (tmp_path / "a" / "fog.token").read_bytes()


def test_a_robust_token_is_compared_under_the_attack(adapt):
    status, out, _ = adapt(
        "--images", "5", "--robust", "--epsilon-255", "64", "--steps", "1", "--name", "fog", "--json"
    )
    assert status == 0
    report = json.loads(out)
    assert report["accuracy"][1]["attack"] == "APGD-5 (CE, targeted DLR)"
    assert report["accuracy"][1]["epsilon_255"] == 64
    assert report["best_beta"] in (0, 0.25, 0.5, 0.75, 1)


def test_an_interrupted_command_continues_to_the_same_token(adapt, tmp_path):
    options = [*QUICK, "--force"]
    adapt(*options, "--out", "whole.token")
    part = tmp_path / "fog.token.part"

    def interrupt():
        while not part.exists() and threading.main_thread().is_alive():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=interrupt)
    sender.start()
    status, out, err = adapt(*options)
    sender.join()
    assert (status, out) == (128 + signal.SIGTERM, "")
    assert "interrupted; saved: fog.token.part; to continue, add --resume" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fog.token.part", "whole.token"]
    before = part.read_bytes()
    assert 0 < SavedAdaptation.model_validate_json(before).runs.count < RUNS
    status, _, err = adapt(*options, "--seed", "1", "--resume")
    assert (status, "other values of: --seed" in err) == (1, True)
    assert part.read_bytes() == before
    assert adapt(*options, "--resume")[0] == 0
    assert (tmp_path / "fog.token").read_bytes() == (tmp_path / "whole.token").read_bytes()
    assert not part.exists()


def test_a_csv_file_gives_the_token_of_its_folder(adapt, foggy, tmp_path):
    files = sorted(foggy.rglob("*.png"))
    (tmp_path / "x.csv").write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    adapt(*QUICK, "--force", "--out", "a.token")
    adapt(*QUICK, "--force", "--out", "b.token", data=tmp_path / "x.csv")
    assert (tmp_path / "a.token").read_bytes() == (tmp_path / "b.token").read_bytes()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 0], "2 images are too few to learn a token: give at least 10, better 50"),
        ([0, 0, 0, 0, 0, 0], "all 6 images have one class, '"),
    ],
)
def test_too_few_images_and_one_class_are_refused(adapt, foggy, tmp_path, kept, message):
    data = tmp_path / "data"
    source = sorted(foggy.iterdir())[0]
    for number, _ in enumerate(kept):
        (data / source.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(sorted(source.iterdir())[0], data / source.name / f"{number}.png")
    status, _, err = adapt(*QUICK, data=data)
    assert status == 1
    assert f"tureen adapt: {message}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_label_that_the_model_lacks_is_refused(adapt, foggy, tmp_path):
    shutil.copytree(foggy, tmp_path / "data")
    sorted((tmp_path / "data").iterdir())[0].rename(tmp_path / "data" / "stop")
    status, _, err = adapt(*QUICK, data=tmp_path / "data")
    assert (status, "has classes that the model lacks: stop" in err) == (1, True)


def test_a_damaged_image_is_named_and_with_strict_refused(adapt, foggy, tmp_path):
    shutil.copytree(foggy, tmp_path / "data")
    bad = sorted((tmp_path / "data").iterdir())[0] / "bad.png"
    bad.write_bytes(b"no image")
    status, _, err = adapt(*QUICK, data=tmp_path / "data")
    assert (status, f"skipped, cannot be decoded: {bad.parent.name}/bad.png" in err) == (0, True)
    status, _, err = adapt(*QUICK, "--strict", data=tmp_path / "data")
    assert (status, "1 images cannot be decoded" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "clean"], "'clean' cannot be the name of a token"),
        (["--name", "No Name"], "'No Name' cannot be the name of a token"),
        (["--learning-rate", "nan"], "'nan' is not a number from 0"),
        (["--learning-rate", "0"], "'0' is not above 0"),
        (["--learning-rate", "inf"], "'inf' is not a number from 0 to 1"),
        (["--epsilon-255", "nan"], "'nan' is not a number from 0 to 255"),
        (["--epsilon-255", "256"], "is not a number from 0 to 255"),
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "'x' is not a whole number from 0"),
        (["--robust", "--epsilon-255", "0"], "--robust needs an attack"),
    ],
)
def test_wrong_options_exit_with_status_2(adapt, tmp_path, options, message):
    status, _, err = adapt("--name", "fog", *options)
    assert (status, message in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_a_run_another_name_and_an_existing_file_are_refused(adapt, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.json").write_text("{}")
    status, _, err = adapt(*QUICK, bundle="run")
    assert (status, "export it first: tureen export run --out BUNDLE" in err) == (1, True)
    status, _, err = adapt(*QUICK, bundle="sings")
    assert (status, "did you mean 'signs'" in err) == (1, True)
    Path("fog.token").write_bytes(b"old")
    status, _, err = adapt(*QUICK)
    assert (status, "fog.token exists already: choose another --out, or delete it" in err) == (1, True)
    assert Path("fog.token").read_bytes() == b"old"


def test_the_report_names_the_robust_accuracy_that_a_winner_loses():
    from tests.training.adapt.test_comparison import accuracy_of

    n = 60
    right = np.arange(n)
    clean, robust = accuracy_of(right < 50, right < 30), accuracy_of(right < 10, right < 16, "APGD-20 (CE)", 8)
    report = command.AdaptReport(
        kept="token",
        name="fog",
        model="signs",
        best_beta=0.5,
        steps=20,
        images=n,
        accuracy=[clean, robust],
        file="fog.token",
    )
    text = command.report_text(report, Path("signs"))
    assert "fog: the token is better than the best β; 20 steps from β = 0.5" in text
    assert "the token loses 10.0 points of robust accuracy" in text
    assert "under APGD-20 (CE), ε = 8/255" in text
