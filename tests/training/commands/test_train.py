"""The arguments of `tureen train`, and the recipe that --show prints, without a training run."""

import pytest

from training.commands.train import equal_modes_warning, train
from training.errors import CheckpointError, RecipeError
from training.evaluation.accuracy import wilson_interval
from training.recipes import load_recipe
from training.weights.pretrained import load_pretrained
from tureen.bundle.manifest import AccuracyRow

SMALL = ["epochs=2", "evaluation_steps=1", "batch_size=8", "model.image_size=16", "model.depth=1", "model.width=16"]


def test_the_printed_recipe_is_adapted_to_the_images(photos, tmp_path, capsys):
    assert train(["cifar10-cpu", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "84 minutes" in shown
    assert "model.classes = number of classes in --data" in shown
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert train(["cifar10-cpu", "--out", str(tmp_path / "run"), *settings, "--data", str(photos), "--show"]) == 0
    shown = capsys.readouterr().out
    assert "minutes" not in shown
    assert "5 classes, about 50 images to train on, 6 steps an epoch, 12 steps in all" in shown
    assert "model.classes = 5" in shown
    assert not (tmp_path / "run").exists()


def test_the_measured_result_and_its_command_are_printed_for_the_unchanged_recipe_only(capsys):
    assert train(["digits", "--show"]) == 0
    unchanged = capsys.readouterr().out
    assert train(["digits", "--show", "--set", "epochs=7"]) == 0
    changed = capsys.readouterr().out
    assert "# tureen train digits" in unchanged
    assert "# tureen train digits" not in changed
    assert "expected: not measured with these images and settings" in changed
    assert "\nepochs = 7\n" in changed


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_an_interval_of_saving_that_is_not_a_time_is_refused_with_its_value(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        train(["digits", "--show", f"--save-interval-s={seconds}"])
    assert ended.value.code == 2
    assert f"'{seconds}' is not a non-negative number of seconds" in capsys.readouterr().err
    assert train(["digits", "--show", "--save-interval-s=0"]) == 0


@pytest.mark.parametrize("expression", ["(", "(a)(b)"])
def test_an_expression_that_names_no_group_is_refused(expression, capsys):
    with pytest.raises(SystemExit) as ended:
        train(["cifar10-cpu", "--show", "--group-by", expression])
    assert ended.value.code == 2
    assert f"argument --group-by: {expression!r}" in capsys.readouterr().err


def test_the_digits_have_no_groups(tmp_path):
    with pytest.raises(RecipeError, match="have no file names: omit --group-by"):
        train(["digits", "--group-by", ".", "--out", str(tmp_path / "run")])


def test_the_number_of_images_to_train_on_follows_the_groups(photos, capsys):
    """Of 12 groups of 5 images one is for validation and one for the test."""
    assert train(["cifar10-cpu", "--show", "--data", str(photos), "--group-by", r"/(\d+)"]) == 0
    assert "about 50 images to train on" in capsys.readouterr().out


def test_without_a_recipe_there_must_be_an_interrupted_run_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="holds no interrupted run to continue: give a recipe to start one"):
        train(["--resume", "--out", str(tmp_path)])


def test_the_printed_shape_is_that_of_the_weights(single_token_file, photos, capsys):
    config = load_pretrained(single_token_file).model.config
    assert train(["finetune", "--show", "--init", str(single_token_file), "--data", str(photos)]) == 0
    shown = capsys.readouterr().out
    for name in ("image_size", "width", "depth", "heads", "pool"):
        assert f"\nmodel.{name} = {getattr(config, name)}\n" in shown
    assert "\nmodel.classes = 5\n" in shown
    assert train(["finetune", "--show", "--init", str(single_token_file), "--image-size", "64"]) == 0
    assert "\nmodel.image_size = 64\n" in capsys.readouterr().out
    assert train(["finetune", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "\nmodel = that of the weights, with --init\n" in shown
    assert "model.width" not in shown


@pytest.mark.parametrize(
    ("clean", "robust", "n", "is_warned"),
    [
        ((39, 39), (13, 13), 40, True),
        ((398, 397), (130, 135), 400, True),
        ((40, 40), (28, 36), 40, False),
        ((398, 300), (130, 130), 400, False),
    ],
    ids=["equal", "nearly equal", "more robust", "less clean"],
)
def test_modes_that_do_not_differ_are_reported_with_settings_for_more_steps(clean, robust, n, is_warned):
    rows = [
        AccuracyRow(
            beta=beta,
            n=n,
            clean=wilson_interval(clean[index], n),
            robust=wilson_interval(robust[index], n),
            attack="APGD-40",
            epsilon_255=4,
        )
        for index, beta in enumerate((0.0, 1.0))
    ]
    warning = equal_modes_warning(rows, load_recipe("finetune"))
    assert (warning is not None) == is_warned
    if warning is not None:
        assert "clean and robust mode differ by less than 2 points" in warning
        assert "--set epochs=100 --set batch_size=32" in warning
