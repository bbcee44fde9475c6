"""What a dry run measures and computes, for small trainings. It writes nothing."""

import json

import pytest

from training.commands.dry_run import measure_cost, seconds_of_a_step
from training.distributed import Processes
from training.preparation import RunOptions
from training.recipes import load_recipe
from tureen.cli import main

SMALL = ["epochs=4", "batch_size=64", "model.width=16", "model.depth=1"]
PHASES = ["epsilon_start=0.25", "epsilon_ramp=0.5", "attack_steps_in_ramp=1", "attack_steps=2"]


def arguments(*settings):
    return ["train", "digits", "--dry-run", *(f"--set={setting}" for setting in [*SMALL, *settings])]


def test_each_phase_of_the_schedule_is_measured_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments(*PHASES), "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert list(tmp_path.rglob("*")) == []
    assert (cost["classes"], cost["training_images"], cost["epochs"], cost["steps_per_epoch"]) == (10, 1212, 4, 18)
    phases = cost["phases"]
    assert [(phase["attack_steps"], phase["steps"]) for phase in phases] == [(0, 19), (1, 35), (2, 18)]
    assert all(phase["seconds_per_epoch"] == pytest.approx(18 * phase["seconds_per_step"]) for phase in phases)
    total = sum(phase["steps"] * phase["seconds_per_step"] for phase in phases)
    assert cost["training_seconds"] == pytest.approx(total)
    assert total > 0
    assert cost["peak_bytes"] > 50 * 2**20
    assert cost["peak_gpu_bytes"] is None or cost["peak_gpu_bytes"] > 0
    weights = 4 * cost["parameters"]
    assert 4 * weights < cost["state_bytes"] < 4.1 * weights  # the model, its average, and two averages of AdamW
    assert cost["checkpoint_bytes"] == weights + (450 + 135) * 8 * 8 * 3


def test_the_table_names_the_phases_and_the_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(*PHASES)) == 0
    shown = capsys.readouterr()
    assert "10 classes: 1212 images to train on" in shown.err
    lines = shown.out.splitlines()
    assert "images (128, 3, 8, 8), tokens (128, 5, 16), logits (128, 10)" in lines[1]
    assert [line.split()[:2] for line in lines[5:8]] == [["none", "19"], ["1", "step"], ["2", "steps"]]
    assert "for 72 steps, 4 epochs of 18" in shown.out
    assert "after them, to measure the accuracy: APGD-20 (CE, targeted DLR) on 450 images at 5 β, and its checks" in (
        shown.out
    )
    assert shown.err.splitlines()[-3:] == [
        "measuring training steps with no attack",
        "measuring training steps with an attack of 1 step",
        "measuring training steps with an attack of 2 steps",
    ]


@pytest.mark.parametrize(("must_warm_up", "made"), [(False, 1), (True, 2)])
def test_of_slow_steps_no_more_are_made_than_needed(must_warm_up, made):
    class SlowTraining:
        """A training whose steps take a minute each."""

        processes, seconds, steps = Processes(), 0.0, 0

        def run_trial(self, step):
            self.seconds += 60
            self.steps += 1

    training = SlowTraining()
    assert seconds_of_a_step(training, 0, must_warm_up=must_warm_up) == 60
    assert training.steps == made


def test_the_time_of_the_accuracy_is_unknown_for_an_attack_that_is_no_gradient_steps():
    cost = measure_cost(load_recipe("digits", [*SMALL, "evaluation_attack=autoattack"]), RunOptions())
    assert cost.evaluation_seconds is None
    assert "an unknown time after them, to measure the accuracy: AutoAttack standard" in str(cost)


@pytest.mark.parametrize(
    ("settings", "rows", "attacks"),
    [
        (["alpha=1"], 64, [0]),
        (["alpha=0"], 64, [0, 2]),
        (["objective=trades"], 3 * 64, [0, 2]),
        (["accumulate=4"], 2 * 16, [0, 2]),
        (["epsilon_ramp=0"], 2 * 64, [2]),
        (["batch_size=5000"], 2 * 1212, [0, 2]),
    ],
)
def test_a_pass_has_the_rows_of_its_losses(settings, rows, attacks):
    cost = measure_cost(load_recipe("digits", [*SMALL, *settings]), RunOptions())
    assert (cost.image[0], cost.logits) == (rows, (rows, 10))
    assert [phase.attack_steps for phase in cost.phases] == attacks


def test_images_that_are_decoded_during_the_training_are_measured_too(photos):
    settings = ["epochs=1", "batch_size=25", "model.image_size=16", "model.width=16", "model.depth=1"]
    recipe = load_recipe("cifar10-cpu", [*settings, "augmentation.crop_scale=0.5"])
    cost = measure_cost(recipe, RunOptions(data=str(photos), workers=1))
    assert (cost.classes, cost.steps_per_epoch) == (5, 2)
    assert sum(phase.steps for phase in cost.phases) == 2  # fewer than are measured


@pytest.mark.parametrize("other", ["--resume", "--show"])
def test_a_dry_run_is_neither_continued_nor_shown(other, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments(), other, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--dry-run" in capsys.readouterr().err
