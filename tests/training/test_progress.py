"""What a run writes to log.jsonl and to the terminal."""

import json
import math
from types import SimpleNamespace

import pytest

from training.cotrain import StepProgress
from training.overfitting import OverfittingProbe
from training.progress import RunLog
from training.recipes import load_recipe


@pytest.fixture
def run():
    return SimpleNamespace(recipe=load_recipe("digits"), steps=100, step=10)


def progress(step, robust_loss=1.5):
    return StepProgress(step, step / 10, 0.5, robust_loss, 38.0, 1e-3, 100.0)


def test_a_log_holds_progress_and_probes_and_null_for_a_loss_that_was_not_computed(run, tmp_path):
    run.step = 0
    with RunLog(run, tmp_path, tensorboard=False) as log:
        assert log.saved_probes == []
        log.add_progress(progress(5, robust_loss=math.nan))
        log.add_probe(OverfittingProbe(5, 0.4, 0.3))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], first["clean_loss"], first["robust_loss"]) == (5, 0.5, None)
    assert second == {"step": 5, "one_step": 0.4, "ten_steps": 0.3}


def test_a_resumed_log_loses_lines_after_the_saved_state_and_a_damaged_line(run, tmp_path):
    kept = ['{"step": 5, "clean_loss": 0.5}', '{"step": 10, "one_step": 0.4, "ten_steps": 0.3}']
    (tmp_path / "log.jsonl").write_text("\n".join([*kept, '{"step": 15, "clean_loss": 0.4}', '{"step": 1']))
    with RunLog(run, tmp_path, tensorboard=False) as log:
        assert log.saved_probes == [OverfittingProbe(10, 0.4, 0.3)]
        assert (tmp_path / "log.jsonl").read_text().splitlines() == kept
        log.add_progress(progress(20))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [5, 10, 20]


def test_without_a_terminal_a_line_is_printed_for_each_tenth_of_the_run(run, tmp_path, capsys):
    with RunLog(run, tmp_path, tensorboard=False) as log:
        for step in range(11, 31):
            log.add_progress(progress(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("train digits: epoch")] == [
        "train digits: epoch 2.0/80, clean 0.500, robust 1.500, ε 38.0/255",
        "train digits: epoch 3.0/80, clean 0.500, robust 1.500, ε 38.0/255",
    ]
