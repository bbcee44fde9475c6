"""`tureen evaluate` and `tureen tune`, on a small checkpoint and on its bundle."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.attacks.catalogue import ATTACKS
from training.attacks.names import attack_label
from training.checkpoint import load_checkpoint, save_checkpoint
from training.evaluation.attack_checks import LARGER_RADIUS
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.manifest import BACKBONE
from tureen.cli import main

SMALL = ["epochs=8", "model.depth=1", "model.width=32", "evaluation_steps=2", "evaluation_betas=0,1"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "run"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert main(["train", "digits", "--out", str(out), *settings]) == 0
    return out


@pytest.fixture(scope="module")
def three_class_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / "photos" / name / f"{i}.png")
    small = ["epochs=1", "batch_size=8", "model.image_size=16", "model.depth=1", "model.width=16", "evaluation_steps=1"]
    settings = [word for setting in small for word in ("--set", setting)]
    assert main(["train", "cifar10-cpu", "--data", str(root / "photos"), "--out", str(root / "run"), *settings]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def small_bundle(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "bundle"
    assert main(["export", str(small_run), "--out", str(out), "--engine", "onnxruntime"]) == 0
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of two digits; one file is damaged."""
    from training.data.datasets import load_digits

    test = load_digits().test
    root = tmp_path_factory.mktemp("photos")
    for label in (3, 8):
        (root / str(label)).mkdir()
        for i, pixels in enumerate(test.pixels[test.labels == label][:6]):
            Image.fromarray(pixels).save(root / str(label) / f"{i}.png")
    (root / "8" / "0.png").write_bytes(b"damaged")
    return root


def measured(arguments, capsys):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_requested_evaluations_are_measured_and_plotted(small_run, tmp_path, capsys):
    plot = tmp_path / "curve.png"
    asked = ["--betas", "0,0.3", "--steps", "2", "--epsilon-255", "8", "--images", "40", "--plot", plot]
    parts = ["--matrix", "--epsilon-curve", "--ensembles", "--shifts"]
    found = measured(["evaluate", small_run, *asked, *parts], capsys)
    rows = [(row["beta"], row["attack"], row["epsilon_255"], row["n"]) for row in found["accuracy"]]
    assert rows == [(0, "APGD-2 (CE, targeted DLR)", 8, 40), (0.3, "APGD-2 (CE, targeted DLR)", 8, 40)]
    evaluation = found["evaluation"]
    assert evaluation["matrix"]["betas"] == [0, 0.3]
    assert {row["epsilon_255"] for row in evaluation["epsilon_curve"]} >= {0, 4, 8}
    assert [row["beta"] for row in evaluation["ensembles"]] == [0.3]
    assert {row["name"] for row in evaluation["shifts"]} >= {"rotation", "sketch"}
    names = {check["name"] for check in evaluation["checks"]}
    assert len(names) == 7
    assert {check["beta"] for check in evaluation["checks"]} == {0, 0.3}
    pictures = sorted(file.name for file in tmp_path.iterdir())
    assert pictures == ["curve-epsilon.png", "curve-matrix.png", "curve-shifts.png", "curve.png"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_of_the_command_runs_on_a_real_checkpoint(small_run, capsys, attack):
    """The radius is large, so that AutoAttack fools every digit in its first parts, in seconds."""
    arguments = ["evaluate", small_run, "--attack", attack, "--steps", "2", "--images", "10", "--betas", "0,1"]
    found = measured([*arguments, "--epsilon-255", "100"], capsys)
    assert [row["attack"] for row in found["accuracy"]] == [attack_label(attack, 2)] * 2
    assert all(0 <= row["robust"]["value"] <= row["clean"]["value"] for row in found["accuracy"])


@pytest.mark.slow
def test_every_part_of_autoattack_runs_on_a_real_checkpoint(small_run, capsys):
    """The radius leaves digits for the last part, Square, which makes 5,000 queries."""
    arguments = [
        "evaluate",
        small_run,
        "--attack",
        "autoattack",
        "--images",
        "10",
        "--betas",
        "0",
        "--epsilon-255",
        "2",
    ]
    (row,) = measured(arguments, capsys)["accuracy"]
    assert row["robust"]["value"] > 0


def test_apgd_on_three_classes_takes_the_plain_ratio_and_reports_it(three_class_run, capsys):
    assert main(["evaluate", str(three_class_run), "--attack", "apgd", "--steps", "2", "--betas", "0,1"]) == 0
    said = capsys.readouterr()
    assert "apgd needs more than 3 classes: attacking with apgd-dlr instead" in said.err
    assert "APGD-2 (CE, DLR)" in said.out


def test_the_validation_images_are_measured_on_request_and_named(small_run, tmp_path, capsys):
    arguments = ["evaluate", str(small_run), "--steps", "1", "--betas", "0,1"]
    found = measured([*arguments, "--split", "validation"], capsys)
    assert (found["split"], found["accuracy"][0]["n"]) == ("validation", 135)
    found = measured([*arguments, "--images", "20"], capsys)
    assert (found["split"], found["accuracy"][0]["n"]) == ("test", 20)
    assert main([*arguments, "--images", "20", "--split", "validation"]) == 0
    assert "accuracy on 20 validation images" in capsys.readouterr().out
    save_checkpoint(tmp_path / "old", replace(load_checkpoint(small_run), validation=None))
    assert main(["evaluate", str(tmp_path / "old"), "--split", "validation"]) == 1
    assert "has no validation images" in capsys.readouterr().err


def test_nothing_but_accuracy_and_the_checks_is_measured_unasked(small_run, capsys):
    assert main(["evaluate", str(small_run), "--images", "20", "--beyond", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "-0.50*" in said
    assert "outside [0, 1]: an extension, never served" in said
    assert "checks on the attack, on 20 images" in said
    assert "forward passes" not in said


def test_saved_results_reach_the_manifest_and_the_card(small_run, tmp_path, capsys):
    import shutil

    run = shutil.copytree(small_run, tmp_path / "run")
    few = ["--images", "30", "--betas", "0,1", "--save"]
    assert main(["evaluate", str(run), "--epsilon-curve", "--strengths", "--steps", "3", *few]) == 0
    assert "predicted: by isotonic regression on 30 validation images" in capsys.readouterr().out
    for norm, radius in (("l2", "128"), ("l1", "2000"), ("l2", "64")):
        arguments = ["--norm", norm, "--epsilon-255", radius, "--attack", "apgd", "--steps", "2", *few]
        assert main(["evaluate", str(run), *arguments]) == 0
    assert main(["evaluate", str(run), "--attack", "pgd", "--steps", "1", "--matrix", *few]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "bundle"), "--engine", "onnxruntime"]) == 0
    manifest = load_bundle(tmp_path / "bundle").manifest
    evaluation = manifest.evaluation
    assert evaluation.epsilon_curve[0].attack == "APGD-3 (CE, targeted DLR)"  # kept, though measured in another call
    assert [(row.norm, row.epsilon_255) for row in evaluation.other_norms] == [("l1", 2000)] * 2 + [("l2", 64)] * 2
    assert {row.norm for row in manifest.accuracy} == {"linf"}
    robust = [row.robust.value for row in manifest.accuracy]
    assert all(worst.value <= share for worst, share in zip(evaluation.matrix.worst, robust, strict=True))
    assert [(counts.beta, sum(counts.images)) for counts in evaluation.classes] == [(0, 30), (1, 30)]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "accuracy by class, %" in card
    assert [row.strength for row in evaluation.strengths] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.001)
    assert "accuracy by strength on 30 test images" in card
    assert "| 0 | " in card
    assert "l1 ε = 2000/255" in card
    assert "PGD-1" in card
    # The checks of the strengths, of the radii and of the other norms are kept beside those of the last table.
    strengths = {row.beta for row in evaluation.strengths}
    assert {check.beta for check in evaluation.checks if check.norm == "linf"} == strengths | {0, 1}
    assert sum(check.name == LARGER_RADIUS for check in evaluation.checks) == 2
    assert [(check.norm, check.beta) for check in evaluation.checks if check.norm != "linf"] == [
        ("l1", 0), ("l1", 1), ("l2", 0), ("l2", 1)
    ]  # fmt: skip
    doubted = {check.beta for check in evaluation.checks if not check.has_passed and check.norm == "linf"} & {0, 1}
    marked = {row.beta for row in manifest.accuracy if f"| {row.beta:g} |" in card and "too high" in line_of(card, row)}
    assert marked == doubted
    assert main(["evaluate", str(run), *few]) == 0
    assert load_checkpoint(run).evaluation.matrix is None  # it belonged to the former table
    assert load_checkpoint(run).evaluation.other_norms == evaluation.other_norms


def line_of(card, row):
    return next(line for line in card.splitlines() if line.startswith(f"| {row.beta:g} | {100 * row.clean.value:.1f}"))


def test_a_bundle_is_measured_through_its_engine(small_bundle, small_run, photos, capsys):
    own = measured(["evaluate", small_bundle, "--data", photos, "--betas", "0,1", "--shifts"], capsys)
    theirs = measured(["evaluate", small_run, "--data", photos, "--betas", "0,1", "--steps", "1"], capsys)
    assert [row["clean"] for row in own["clean"]] == [row["clean"] for row in theirs["accuracy"]]
    assert own["clean"][0]["n"] == 11
    assert own["shifts"]
    assert main(["evaluate", str(small_bundle), "--data", str(photos)]) == 0
    said = capsys.readouterr()
    assert "accuracy on 11 images" in said.out
    assert "8/0.png" in said.err


@pytest.mark.parametrize("path", ["bundle", "run"])
def test_tune_chooses_a_beta_from_few_images(small_bundle, small_run, photos, capsys, path):
    arguments = ["tune", small_bundle if path == "bundle" else small_run, "--data", photos, "--betas", "0:1:0.5"]
    tuned = measured([*arguments, "--images", "8"], capsys)
    assert tuned["betas"] == [0, 0.5, 1]
    assert tuned["beta"] in tuned["betas"]
    assert 7 <= tuned["n"] <= 8
    assert main([str(a) for a in arguments]) == 0
    assert "chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{bundle}"], "add --data"),
        (["evaluate", "{bundle}", "--data", ".", "--norm", "l2"], "--norm: a bundle has no gradients to attack"),
        (["evaluate", "{run}", "--norm", "l2"], "--norm l2 needs --epsilon-255: the radius of the recipe is for l∞"),
        (["evaluate", "{run}", "--norm", "l1", "--epsilon-255", "9", "--matrix"], "--matrix: only with --norm linf"),
        (["evaluate", "{bundle}", "--data", ".", "--attack", "pgd", "--matrix"], "--attack, --matrix: a bundle has no"),
        (["evaluate", "{run}", "--save", "--data", "."], "omit --data"),
        (["evaluate", "{run}", "--strengths", "--data", "."], "--strengths measures the test and validation images"),
        (["evaluate", "{run}", "--save", "--split", "validation"], "--save stores results on the test images"),
        (["evaluate", "{run}", "--split", "test", "--data", "."], "--split chooses images of a checkpoint"),
        (["evaluate", "{bundle}", "--split", "test", "--data", "."], "--split chooses images of a checkpoint"),
        (["evaluate", "{run}", "--save", "--betas", "0.5"], "--save needs both modes"),
        (["evaluate", "{run}", "--epsilon-255", "300"], "300.0 is not between 0 and 255"),
        (["evaluate", "{run}", "--attack", "nothing"], "invalid choice"),
        (["tune", "{run}"], "--data"),
    ],
)
def test_wrong_use_is_reported(small_bundle, small_run, capsys, arguments, message):
    filled = [argument.format(bundle=small_bundle, run=small_run) for argument in arguments]
    with pytest.raises(SystemExit, match="2"):
        main(filled)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_the_images_are_read_before_the_engine_of_a_bundle_opens(tmp_path, capsys, command):
    bundle = tmp_path / "bundle"
    shutil.copytree(EXAMPLES / "cifar10", bundle)
    (bundle / BACKBONE).write_bytes(b"no graph")  # no engine can open it
    (tmp_path / "photos" / "unicorn").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / "unicorn" / "0.png")
    for name, reason in (("photos", "classes that the model lacks: unicorn"), ("missing", "missing")):
        assert main([command, str(bundle), "--data", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert reason in error
        assert BACKBONE not in error


def test_images_of_classes_the_model_does_not_know_are_refused(small_run, tmp_path, capsys):
    for name in ("3", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / name / "0.png")
    assert main(["tune", str(small_run), "--data", str(tmp_path)]) == 1
    assert "classes that the model lacks: cat" in capsys.readouterr().err
