"""The parts of an evaluation that the commands run."""

import numpy as np
import pytest

from training.evaluation.accuracy import evaluate_accuracy, make_predictor
from training.evaluation.measure import Measurement, measure_shifts
from training.evaluation.shift_accuracy import evaluate_shifts


@pytest.fixture
def images(grey_images):
    return grey_images([20, 60, 100, 120, 140, 160, 200, 250])


@pytest.fixture
def measurement(grey_model, images):
    return Measurement(grey_model, images, attack="pgd", steps=4, epsilon_255=20)


def test_accuracy_is_that_of_the_same_attack(measurement, grey_model, images):
    expected = evaluate_accuracy(grey_model, images, betas=[0, 1], epsilon_255=20, steps=4, attack="pgd")
    assert measurement.accuracy([0, 1]) == expected


def test_ensembles_are_measured_between_the_modes_only(measurement):
    assert [row.beta for row in measurement.ensembles([-0.5, 0, 0.25, 0.5, 1, 1.5])] == [0.25, 0.5]


def test_the_curve_begins_without_an_attack_and_the_checks_are_made_in_both_modes(measurement):
    curve = measurement.epsilon_curve([1.0])
    assert [row.epsilon_255 for row in curve[:3]] == [0, 10, 20]
    assert curve[0].robust == curve[0].clean
    assert {check.beta for check in measurement.checks()} == {0, 1}


def test_the_matrix_is_by_pgd_for_any_attack(grey_model, images):
    matrix = Measurement(grey_model, images, attack="apgd", steps=4, epsilon_255=20).matrix([0, 1])
    assert (matrix.attack, matrix.betas, np.shape(matrix.robust)) == ("PGD-4", [0, 1], (2, 2))


def test_shifts_are_those_of_the_evaluation(grey_model, images):
    predict = make_predictor(grey_model)
    rows = measure_shifts(predict, images, [0, 1], ["inversion"])
    assert rows == evaluate_shifts(predict, images, betas=[0, 1], names=["inversion"])
