"""`tureen attack`, on the small model of the digits."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from export.commands.attack import AttackReport, readings_table, report_text
from training.evaluation.picture_attack import Reading
from tureen.bundle.bundle import read_manifest
from tureen.cli import main
from tureen.pictures.signs import drawn_picture


@pytest.fixture
def digit(checkpoint, tmp_path):
    """The file of a held-out digit that both modes read rightly, and its label."""
    from training.evaluation.accuracy import make_predictor

    predict, images = make_predictor(checkpoint.model), checkpoint.test
    right = [predict(images.pixels, [beta] * len(images)).argmax(1) == images.labels for beta in (0.0, 1.0)]
    index = int(np.argmax(right[0] & right[1]))
    Image.fromarray(images.pixels[index]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png", str(images.labels[index])


def attacked(arguments, capsys):
    assert main(["attack", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_saved_file_is_the_one_that_is_reported(digits_run, digit, soup, tmp_path, capsys):
    path, label = digit
    out, difference = tmp_path / "new" / "attacked.png", tmp_path / "difference.png"
    arguments = [path, "--checkpoint", digits_run, "--out", out, "--difference", difference, "--steps", "10"]
    report = attacked(arguments, capsys)
    assert (report["label"], report["label_source"], report["betas"]) == (label, "clean mode", [0])
    assert report["attack"] == "APGD-10 (CE, DLR, widest margin)"
    before, after = (np.asarray(Image.open(file), dtype=int) for file in (path, out))
    assert np.abs(before - after).max() == report["largest_change"] <= report["epsilon_255"] == 38
    (result,) = soup.classify([out], beta="clean")
    assert result.predictions[0].label == report["after"][0]["label"]
    assert report["succeeded"] is (result.predictions[0].label != label) is True
    assert [reading["strength"] for reading in report["before"]] == [0, 0.25, 0.5, 0.75, 1]
    shown = np.asarray(Image.open(difference), dtype=int)
    assert shown.shape == (256, 256, 3)
    assert (shown[::32, ::32] == 128 + 3 * (after - before)).all()


def test_both_tokens_or_another_strength_can_be_attacked(digits_run, digit, tmp_path, capsys):
    path, label = digit
    common = [path, "--checkpoint", digits_run, "--out", tmp_path / "out.png", "--steps", "3", "--label", label]
    assert attacked([*common, "--joint"], capsys)["betas"] == [0, 1]
    report = attacked([*common, "--strength", "0.5", "--epsilon-255", "1"], capsys)
    assert report["betas"] == [report["before"][2]["beta"]]
    assert report["largest_change"] == 1
    assert report["succeeded"] is False
    assert attacked([*common, "--beta", "robust"], capsys)["betas"] == [1]


def test_the_text_has_the_readings_and_the_result(digits_run, digit, tmp_path, capsys):
    path, label = digit
    out = tmp_path / "out.png"
    assert main(["attack", str(path), "--checkpoint", str(digits_run), "--out", str(out), "--epsilon-255", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"digit.png: {label}, as clean mode reads it\n")
    assert "The attack failed: the image is still read rightly at β = 0." in said
    assert "no measurement of robustness" in said


def reading(label, strength=0.0):
    return Reading(strength=strength, beta=strength, label=label, probability=0.9, true_label_probability=0.1)


def test_a_report_says_which_modes_are_wrong(tmp_path):
    report = AttackReport(
        label="stop",
        label_source="--label",
        attack="APGD-100",
        epsilon_255=4,
        betas=[0, 1],
        largest_change=4,
        right_before=[True, True],
        right_after=[False, True],
        succeeded=False,
        before=[reading("stop")],
        after=[reading("yield")],
    )
    text = report_text(report, image="stop.png", out=tmp_path / "out.png")
    assert "stop.png: stop, as --label says" in text
    assert "l∞, ε = 4/255, for β = 0 and 1" in text
    assert "The attack failed: the image is still read rightly at β = 1." in text
    done = report.model_copy(update={"right_after": [False, False]})
    assert "The attack succeeded: the image is read wrongly at β = 0 and 1." in report_text(
        done, image="stop.png", out=tmp_path
    )


def test_a_row_whose_label_changed_is_marked():
    table = readings_table([reading("stop"), reading("stop", 1.0)], [reading("yield"), reading("stop", 1.0)])
    assert [line.endswith("changed") for line in table.splitlines()] == [False, True, False]


def failed(arguments, capsys, status=1):
    assert main(["attack", *map(str, arguments)]) == status
    return capsys.readouterr().err


def test_a_wrong_label_is_an_error_before_the_attack(digits_run, digit, tmp_path, capsys):
    path, label = digit
    common = [path, "--checkpoint", digits_run, "--out", tmp_path / "out.png"]
    assert "the model has no label 'cat': choose one of 0, 1" in failed([*common, "--label", "cat"], capsys)
    other = str((int(label) + 1) % 10)
    said = failed([*common, "--label", other], capsys)
    assert f"digit.png is not {other} for β = 0 even before the attack" in said
    assert not (tmp_path / "out.png").exists()


def test_a_bundle_is_attacked_like_its_checkpoint(bundle_path, digit, tmp_path, capsys):
    path, label = digit
    manifest = read_manifest(bundle_path)
    report = attacked([path, "--bundle", bundle_path, "--out", tmp_path / "out.png", "--steps", "10"], capsys)
    assert (report["label"], report["epsilon_255"]) == (label, manifest.accuracy[0].epsilon_255)
    assert report["succeeded"] is True
    curve = manifest.strength
    assert [reading["beta"] for reading in report["before"]] == [curve.beta_at(s) for s in (0, 0.25, 0.5, 0.75, 1)]


def test_an_example_is_attacked_by_its_name_and_is_the_default(tmp_path, capsys):
    drawn_picture("stop", 0).save(tmp_path / "stop.png")
    common = [tmp_path / "stop.png", "--out", tmp_path / "out.png", "--steps", "2", "--label", "stop"]
    report = attacked([*common, "--bundle", "signs"], capsys)
    assert report["label"] == "14-stop"
    assert attacked(common, capsys) == report


def test_a_file_that_is_no_image_is_an_error(digits_run, tmp_path, capsys):
    (tmp_path / "text.png").write_text("text")
    common = ["--checkpoint", digits_run, "--out", tmp_path / "out.png"]
    assert "not a JPEG, PNG or WebP image" in failed([tmp_path / "text.png", *common], capsys, status=2)
    assert "cannot be read: No such file" in failed([tmp_path / "none.png", *common], capsys, status=2)


@pytest.mark.parametrize("radius", ["0", "0.9", "256", "nan", "four"])
def test_a_radius_outside_8_bits_is_wrong_use(radius, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["attack", "a.png", "--checkpoint", "run", "--out", str(tmp_path / "o.png"), "--epsilon-255", radius])
    assert ended.value.code == 2
    assert "is not a number from 1 to 255" in capsys.readouterr().err


def test_a_directory_without_a_model_is_an_error(digits_run, digit, tmp_path, capsys):
    shutil.copytree(digits_run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    said = failed([digit[0], "--checkpoint", tmp_path / "run", "--out", tmp_path / "out.png"], capsys)
    assert "is not a finished checkpoint" in said
