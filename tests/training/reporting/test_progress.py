"""What a run writes to log.jsonl and to the terminal."""

import json
import math
from types import SimpleNamespace

import pytest

from training.cotrain import StepProgress
from training.overfitting import OverfittingProbe
from training.recipes import load_recipe
from training.reporting.loggers import RunLoggers
from training.reporting.progress import ESTIMATE_STEPS, ReadingProgress, RunLog, TimeEstimate, duration


@pytest.fixture
def run():
    return SimpleNamespace(recipe=load_recipe("digits"), steps=100, step=10)


def progress(step, robust_loss=1.5):
    return StepProgress(step, step / 10, 0.5, robust_loss, 38.0, 1e-3, 100.0)


def test_without_a_terminal_reading_is_shown_at_the_start_and_after_each_tenth(capsys):
    with ReadingProgress("photos", is_shown=True) as reading:
        assert capsys.readouterr().err == "listing the images of photos\n"
        reading.start(2000)
        assert capsys.readouterr().err == "reading 2,000 images\n"
        for _ in range(2000):
            reading.advance(1)
    first, *_, last, then = capsys.readouterr().err.splitlines()
    assert (first, last) == ("read 200 of 2,000 images", "read 2,000 of 2,000 images")
    assert then == "comparing the images, to find copies of training images"


def test_a_process_that_is_not_the_first_shows_no_reading(capsys):
    with ReadingProgress("photos", is_shown=False) as reading:
        reading.start(10)
        reading.advance(10)
    assert capsys.readouterr().err == ""


def test_a_log_holds_progress_and_probes_and_null_for_a_loss_that_was_not_computed(run, tmp_path):
    run.step = 0
    with RunLog(run, tmp_path, RunLoggers()) as log:
        assert log.saved_probes == []
        log.add_progress(progress(5, robust_loss=math.nan))
        log.add_probe(OverfittingProbe(5, 0.4, 0.3))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], first["clean_loss"], first["robust_loss"]) == (5, 0.5, None)
    assert second == {"step": 5, "one_step": 0.4, "ten_steps": 0.3}


def test_a_resumed_log_loses_lines_after_the_saved_state_and_a_damaged_line(run, tmp_path):
    kept = ['{"step": 5, "clean_loss": 0.5}', '{"step": 10, "one_step": 0.4, "ten_steps": 0.3}']
    (tmp_path / "log.jsonl").write_text("\n".join([*kept, '{"step": 15, "clean_loss": 0.4}', '{"step": 1']))
    with RunLog(run, tmp_path, RunLoggers()) as log:
        assert log.saved_probes == [OverfittingProbe(10, 0.4, 0.3)]
        assert (tmp_path / "log.jsonl").read_text().splitlines() == kept
        log.add_progress(progress(20))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [5, 10, 20]


def test_without_a_terminal_a_line_is_printed_for_each_tenth_of_the_run(run, tmp_path, capsys):
    with RunLog(run, tmp_path, RunLoggers()) as log:
        for step in range(11, 31):
            log.add_progress(progress(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("train digits: epoch")] == [
        "train digits: epoch 2.0/80, clean 0.500, robust 1.500, ε 38.0/255",
        "train digits: epoch 3.0/80, clean 0.500, robust 1.500, ε 38.0/255",
    ]


def estimates(recipe, *, first, steps, seconds_per_step):
    """The texts of an estimate after each step from `first` on."""
    seconds = iter(range(10**6))
    estimate = TimeEstimate(recipe, first, steps, clock=lambda: next(seconds) * 17 * seconds_per_step)
    return [estimate.after_step(step) for step in range(first + 1, min(steps, first + 60) + 1)]


def test_after_20_steps_the_time_of_the_whole_run_is_estimated_once():
    recipe = load_recipe("digits", ["epsilon_start=0", "epsilon_ramp=0"])  # every step costs the same
    texts = estimates(recipe, first=0, steps=6000, seconds_per_step=0.12)
    assert texts.count(None) == len(texts) - 1
    assert texts[ESTIMATE_STEPS - 1] == "about 12 min for 6,000 steps"


def test_the_estimate_of_a_continued_run_is_that_of_the_rest():
    recipe = load_recipe("digits", ["epsilon_start=0", "epsilon_ramp=0"])
    texts = estimates(recipe, first=3000, steps=6000, seconds_per_step=1)
    assert texts[ESTIMATE_STEPS - 1] == "about 50 min for the remaining 3,000 steps"


def test_the_estimate_counts_an_attack_that_starts_later():
    settings = ["epsilon_start=0.5", "epsilon_ramp=0", "attack_steps=2"]
    texts = estimates(load_recipe("digits", settings), first=0, steps=1000, seconds_per_step=2)
    # 500 steps of two passes, then 500 of four: 3,000 passes of one second.
    assert texts[ESTIMATE_STEPS - 1] == "about 50 min for 1,000 steps"


@pytest.mark.parametrize("steps", [5, 20])
def test_a_run_that_ends_within_20_steps_has_no_estimate(steps):
    texts = estimates(load_recipe("digits"), first=0, steps=steps, seconds_per_step=1)
    assert texts == [None] * steps


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (9000, "2.5 h"), (40 * 3600, "40 h")],
)
def test_a_duration_has_the_unit_of_its_size(seconds, text):
    assert duration(seconds) == text
