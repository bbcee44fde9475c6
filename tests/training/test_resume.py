"""The saved state of a run, and the times of saving."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from training.errors import CheckpointError
from training.recipes import load_recipe
from training.resume import SavedRun, SaveTimer, absolute_location, read_saved_run, require_same_recipe


def test_saving_takes_two_per_cent_of_the_time_at_most():
    now = [0.0]
    clock, saves = SaveTimer(10, now=lambda: now[0]), []

    def save():
        saves.append(now[0])
        now[0] += 3

    while now[0] < 3000:
        now[0] += 1  # a step
        if clock.is_due:
            clock.save(save)
    assert saves[0] == 10
    assert 3 * len(saves) / now[0] < 0.021


def test_saving_that_costs_nothing_is_done_at_the_interval():
    now = [0.0]
    clock = SaveTimer(10, now=lambda: now[0])
    for second in range(1, 31):
        now[0] = second
        assert clock.is_due == (second % 10 == 0)
        if clock.is_due:
            clock.save(lambda: None)


def saved_run(recipe):
    return SavedRun(
        path=Path("run/resume.safetensors"),
        recipe=recipe,
        labels=["0", "1"],
        step=30,
        steps=120,
        data=None,
        group_by=None,
        init=None,
        is_strict=False,
        is_compiled=False,
    )


def test_a_saved_run_is_printed_with_its_progress():
    assert str(saved_run(load_recipe("digits"))) == "run/resume.safetensors, step 30 of 120 (25 %)"


def test_the_header_of_a_state_holds_recipe_and_options(tmp_path):
    recipe = load_recipe("digits", ["epochs=3"])
    metadata = {"recipe": recipe.model_dump_json(), "labels": '["a"]', "step": "4", "steps": "63"}
    options = {"data": "/photos", "group_by": "_", "is_strict": True, "logged_runs": {"mlflow": "7f"}}
    options |= {"origin": {"init": "vit.pth"}}
    save_file({"x": np.zeros(1)}, tmp_path / "state", {**metadata, "options": json.dumps(options)})
    saved = read_saved_run(tmp_path / "state")
    assert (saved.recipe, saved.labels, saved.step, saved.steps) == (recipe, ["a"], 4, 63)
    assert (saved.data, saved.group_by, saved.init) == ("/photos", "_", None)
    assert (saved.is_strict, saved.is_compiled) == (True, False)
    assert (saved.origin, saved.logged_runs) == ({"init": "vit.pth"}, {"mlflow": "7f"})


def test_a_state_of_another_version_or_a_damaged_one_is_an_error(tmp_path):
    save_file({"x": np.zeros(1)}, tmp_path / "state", {"step": "4"})
    with pytest.raises(CheckpointError, match="another version of Tureen: delete it"):
        read_saved_run(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read: delete it"):
        read_saved_run(tmp_path / "state")


def test_a_setting_that_changes_the_weights_is_an_error_and_one_of_the_measurement_is_not():
    saved = saved_run(load_recipe("digits"))
    require_same_recipe(saved, load_recipe("digits", ["evaluation_steps=7"]))
    with pytest.raises(CheckpointError, match=r"is of a run with model\.depth = 4, not 2: omit that option"):
        require_same_recipe(saved, load_recipe("digits", ["model.depth=2"]))
    with pytest.raises(CheckpointError, match="is of a run with the recipe = digits, not cifar10"):
        require_same_recipe(saved, load_recipe("cifar10"))


def test_a_location_becomes_absolute_if_it_is_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert absolute_location(None) is None
    assert absolute_location("photos") == str(tmp_path / "photos")
    assert absolute_location("hf:photos") == f"hf:{tmp_path / 'photos'}"
    assert absolute_location("hf:owner/name") == "hf:owner/name"
    assert absolute_location("hf-hub:owner/name") == "hf-hub:owner/name"
    assert absolute_location("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"
