"""The nested cross-validation: which images choose β, the number of steps and the token of a fold."""

from dataclasses import replace

import numpy as np
import pytest

from training.adapt.cross_validation import (
    FOLDS,
    RUNS,
    FinishedRuns,
    FoldRun,
    PairRun,
    best_checkpoint,
    correct_by_start,
    cross_validate,
    split_folds,
    token_after,
)
from training.adapt.learning import FrozenModel, LearningSettings, Score

BETAS = [0.0, 0.5, 1.0]


def validated(frozen, settings, finished=None):
    seen = []
    result = cross_validate(frozen, BETAS, settings, finished or FinishedRuns(), seen.append)
    return result, seen


@pytest.mark.parametrize("n", [5, 10, 53])
def test_folds_have_equal_shares_of_each_class(n, settings):
    labels = np.random.default_rng(0).integers(0, 4, n)
    folds = split_folds(labels, settings)
    for group in (np.ones(n, bool), *(labels == label for label in range(4))):
        counts = np.bincount(folds[group], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(folds, split_folds(labels, settings))
    assert n == 5 or (folds != split_folds(labels, replace(settings, seed=9))).any()


def test_most_right_images_choose_the_steps_and_the_loss_breaks_a_tie():
    settings = LearningSettings(steps=10, learning_rate=1, seed=0)
    one = [Score(3, 9.0), Score(4, 8.0), Score(4, 7.0)]
    assert best_checkpoint([one], settings) == 10
    assert best_checkpoint([one, [Score(2, 1.0), Score(2, 1.0), Score(1, 1.0)]], settings) == 5
    assert best_checkpoint([[Score(1, 2.0)] * 3], settings) == 0


def test_each_fold_has_a_token_and_each_finished_run_is_reported(frozen, settings):
    result, seen = validated(frozen, settings)
    assert [one.count for one in seen] == list(range(1, RUNS + 1))
    assert len(result.runs) == FOLDS
    assert result.steps in settings.checkpoints
    assert sorted(np.concatenate([result.rows(fold) for fold in range(FOLDS)])) == list(range(15))
    for fold, run in enumerate(result.runs):
        rows = np.flatnonzero(result.folds != fold)
        token = token_after(frozen, rows, run.start, settings, steps=run.steps, stream=25 + fold)
        assert token.tolist() == run.token


def test_the_images_of_a_fold_choose_nothing_for_it(model, coloured, frozen, settings):
    result, _ = validated(frozen, settings)
    rows = result.rows(2)
    labels = coloured.labels.copy()
    pixels = coloured.pixels.copy()
    pixels[rows] = 255 - pixels[rows]  # the labels determine the folds, so they stay
    other, _ = validated(FrozenModel(model, replace(coloured, pixels=pixels, labels=labels)), settings)
    assert other.runs[2] == result.runs[2]
    assert other.runs[1] != result.runs[1]


@pytest.mark.parametrize("kept", [0, 7, 12, RUNS])
def test_finished_runs_are_not_repeated_and_change_nothing(frozen, settings, kept):
    result, seen = validated(frozen, settings)
    finished = FinishedRuns.model_validate_json(([FinishedRuns(), *seen])[kept].model_dump_json())
    again, more = validated(frozen, settings, finished)
    assert len(more) == RUNS - kept
    assert again.runs == result.runs
    assert (again.steps, again.start) == (result.steps, result.start)


def test_a_finished_run_is_believed(frozen, settings):
    _, seen = validated(frozen, settings)
    marked = seen[-1].model_copy(update={"folds": {**seen[-1].folds, "0": FoldRun(start=1, steps=0, token=[0.0] * 16)}})
    assert validated(frozen, settings, marked)[0].runs[0].token == [0.0] * 16
    assert isinstance(next(iter(marked.pairs.values())), PairRun)


def test_under_attack_the_robust_beta_is_chosen(frozen, settings):
    clean = correct_by_start(frozen, BETAS, settings)
    attacked = correct_by_start(frozen, BETAS, replace(settings, epsilon_255=32))
    assert clean.shape == attacked.shape == (3, 15)
    assert (attacked <= clean).all()
    assert attacked.sum() < clean.sum()
