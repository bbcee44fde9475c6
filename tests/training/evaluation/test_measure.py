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
    return Measurement(grey_model, images, [0, 1], attack="pgd", steps=4, epsilon_255=20)


def test_accuracy_is_that_of_the_same_attack(measurement, grey_model, images):
    expected = evaluate_accuracy(grey_model, images, betas=[0, 1], epsilon_255=20, steps=4, attack="pgd")
    assert measurement.accuracy() == expected


def test_the_counts_by_class_add_up_to_the_accuracy_of_each_mode(grey_model, images):
    measurement = Measurement(grey_model, images, [0, 0.5, 1], attack="pgd", steps=4, epsilon_255=20)
    counts = measurement.by_class(3)
    assert [row.beta for row in counts] == [0, 1]
    for row, accuracy in zip(counts, measurement.accuracy()[::2], strict=True):
        assert row.images == np.bincount(images.labels, minlength=3).tolist()
        assert sum(row.clean) == round(accuracy.clean.value * len(images))
        assert sum(row.robust) == round(accuracy.robust.value * len(images))
        assert all(robust <= clean <= n for robust, clean, n in zip(row.robust, row.clean, row.images, strict=True))


def test_ensembles_are_measured_between_the_modes_only(grey_model, images):
    betas = [-0.5, 0, 0.25, 0.5, 1, 1.5]
    measurement = Measurement(grey_model, images, betas, attack="pgd", steps=4, epsilon_255=20)
    assert [row.beta for row in measurement.ensembles()] == [0.25, 0.5]


def test_the_curve_begins_without_an_attack_and_the_checks_are_made_at_every_beta(measurement):
    curve = measurement.epsilon_curve()
    assert [row.epsilon_255 for row in curve[:6:2]] == [0, 10, 20]
    assert curve[0].robust == curve[0].clean
    assert {check.beta for check in measurement.checks()} == {0, 1}


def test_parts_after_the_accuracy_attack_the_same_images_no_second_time(measurement, monkeypatch):
    rows = measurement.accuracy()
    monkeypatch.setattr("training.evaluation.measure.attack_each_beta", None)
    assert measurement.accuracy() == rows
    matrix = measurement.matrix()
    assert (matrix.betas, np.shape(matrix.robust)) == ([0, 1], (2, 2))
    assert all(worst.value <= row.robust.value for worst, row in zip(matrix.worst, rows, strict=True))


def test_accuracy_under_another_norm_says_which(grey_model, images):
    measurement = Measurement(grey_model, images, [0, 1], attack="apgd", steps=4, epsilon_255=128, norm="l2")
    assert [(row.norm, row.epsilon_255, row.attack) for row in measurement.accuracy()] == [
        ("l2", 128, "APGD-4 (CE, targeted DLR)")
    ] * 2


def test_shifts_are_those_of_the_evaluation(grey_model, images):
    predict = make_predictor(grey_model)
    rows = measure_shifts(predict, images, [0, 1], ["inversion"])
    assert rows == evaluate_shifts(predict, images, betas=[0, 1], names=["inversion"])


def test_without_a_terminal_a_line_is_printed_for_each_tenth(measurement, capsys):
    measurement.checks()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measure, check the attack: ")]
    shares = [int(line.split()[-1].removesuffix("%")) for line in lines]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert shares[-1] == 100
