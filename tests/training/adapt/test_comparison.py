"""The comparison of token and β, without and under an attack, and the sign test that decides."""

from dataclasses import replace

import numpy as np
import pytest

from training.adapt.comparison import MAX_ATTACKED, accuracy_of, compare, compare_under_attack, has_won
from training.adapt.cross_validation import CrossValidation, FoldRun, split_folds
from training.adapt.learning import FrozenModel


@pytest.fixture
def validation(frozen, settings):
    """The token of each fold is the soup at β = 1, and the best β is 0."""
    folds = split_folds(frozen.images.labels, settings)
    run = FoldRun(start=0, steps=5, token=frozen.model.soup(1.0).tolist())
    return CrossValidation(folds=folds, runs=[run] * 5, steps=5, start=0)


@pytest.mark.parametrize(
    ("wins", "losses", "has_it_won"),
    [(5, 0, True), (4, 0, False), (7, 1, True), (6, 1, False), (0, 0, False), (0, 9, False)],
)
def test_a_token_wins_only_significantly(wins, losses, has_it_won):
    token = np.array([True] * wins + [False] * losses + [True] * 5)
    beta = np.array([False] * wins + [True] * losses + [True] * 5)
    accuracy = accuracy_of(token, beta)
    assert (accuracy.wins, accuracy.losses, accuracy.n) == (wins, losses, wins + losses + 5)
    assert has_won(accuracy) is has_it_won


def test_each_image_is_classified_at_the_token_of_its_fold(frozen, validation):
    rows = np.arange(15)
    expected = [frozen.correct(rows, frozen.model.soup(beta)) for beta in (1.0, 0.0)]
    accuracy = compare(frozen, validation)
    assert accuracy == accuracy_of(*expected)
    assert (accuracy.attack, accuracy.epsilon_255) == (None, 0)


def test_robust_accuracy_is_at_most_that_without_an_attack_and_names_the_attack(frozen, validation, settings):
    calls = []
    attacked = compare_under_attack(frozen, validation, settings, 16, lambda: calls.append(1))
    clean = compare(frozen, validation)
    assert len(calls) == 10
    assert attacked.n == 15
    assert attacked.token.value <= clean.token.value
    assert attacked.best_beta.value <= clean.best_beta.value
    assert (attacked.attack, attacked.epsilon_255) == ("APGD-5 (CE, DLR)", 16)  # three classes have no targeted DLR
    assert attacked == compare_under_attack(frozen, validation, settings, 16, lambda: None)


def test_without_robust_learning_a_limited_number_of_images_is_attacked(model, coloured, settings, validation):
    many = replace(coloured, pixels=np.tile(coloured.pixels, (8, 1, 1, 1)), labels=np.tile(coloured.labels, 8))
    frozen = FrozenModel(model, many)
    validation = replace(validation, folds=split_folds(many.labels, settings))
    limited = compare_under_attack(frozen, validation, settings, 1, lambda: None)
    assert (limited.n, limited.attack) == (MAX_ATTACKED, "APGD-20 (CE, DLR)")
    assert compare_under_attack(frozen, validation, replace(settings, epsilon_255=1), 1, lambda: None).n == 120
