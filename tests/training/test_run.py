import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import load_checkpoint
from training.data import load_digits
from training.errors import CheckpointError, RecipeError
from training.recipes import load_recipe
from tureen.cli import main

QUICK = ["epochs=6", "evaluation_steps=1", "evaluation_betas=0,1", "model.depth=1", "model.width=16"]


def command(out, *extra):
    settings = [word for setting in QUICK for word in ("--set", setting)]
    return ["train", "digits", "--out", str(out), *settings, *extra]


def test_the_digits_are_split_once_and_stratified():
    data, again = load_digits(), load_digits()
    assert (len(data.train), len(data.held_out)) == (1347, 450)
    assert data.train.pixels.dtype == np.uint8
    assert data.train.pixels.shape[1:] == (8, 8, 3)
    assert data.train.pixels.max() == 255
    np.testing.assert_array_equal(data.held_out.labels, again.held_out.labels)
    assert min(np.bincount(data.held_out.labels)) >= 43


def test_a_run_leaves_a_checkpoint_a_log_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "--json")) == 0
    assert [row["beta"] for row in json.loads(capsys.readouterr().out)] == [0, 1]
    assert sorted(file.name for file in out.iterdir()) == [
        "checkpoint.json",
        "held_out.npz",
        "log.jsonl",
        "model.safetensors",
    ]
    epochs = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["epsilon_255"] == 38
    assert main(command(out)) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL at some moment after the first state was saved; fp32 on a CPU, so the weights are equal to the bit."""
    # Saved after every epoch instead of every ten seconds, so that there is something to resume.
    program = "import sys, training.run as r; r.SECONDS_BETWEEN_SAVES = 0; import tureen.cli as c; sys.exit(c.main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    long = ["--set", "epochs=25"]

    def start(out, *extra):
        return subprocess.Popen(
            [sys.executable, "-c", program, *command(out, *long, *extra)], env=environment, stderr=subprocess.DEVNULL
        )

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "resume.safetensors").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint.json").exists()
    assert start(tmp_path / "killed").wait() == 1  # without --resume it is left alone
    assert start(tmp_path / "killed", "--resume").wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    killed_weights, whole_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(killed_weights[name], whole_weights[name]) for name in whole_weights)


def test_a_checkpoint_that_was_changed_is_refused(tmp_path):
    out = tmp_path / "run"
    assert main(command(out)) == 0
    load_checkpoint(out)
    model = bytearray((out / "model.safetensors").read_bytes())
    model[-1] ^= 1
    (out / "model.safetensors").write_bytes(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what"):
        load_checkpoint(out)
    (out / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(out)


def test_evaluate_measures_what_is_asked_and_draws_it(digits_run, tmp_path, capsys):
    plot = tmp_path / "curve.png"
    arguments = ["evaluate", str(digits_run), "--betas", "0,0.3", "--steps", "2", "--epsilon-255", "8", "--json"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["beta"], row["attack"], row["epsilon_255"]) for row in rows] == [(0, "PGD-2", 8), (0.3, "PGD-2", 8)]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_settings_reach_the_recipe_by_name():
    recipe = load_recipe("digits", ["epochs=7", "model.depth=2", "evaluation_betas=0,0.1,1"])
    assert (recipe.epochs, recipe.model.depth, recipe.evaluation_betas) == (7, 2, (0, 0.1, 1))


@pytest.mark.parametrize(
    "setting",
    ["alpha=2", "model=1", "model.patch_size=3", "nothing=1", "model.nothing=1", "evaluation_betas=0.5", "x.y=1"],
)
def test_a_wrong_setting_is_named(setting):
    with pytest.raises(RecipeError):
        load_recipe("digits", [setting])
