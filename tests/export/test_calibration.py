import numpy as np
import pytest

from export.calibration import (
    MIN_IMAGES,
    LabelledLogits,
    calibration_error,
    fit_calibration,
    fit_temperature,
    measure_dial,
    random_halves,
)
from training.data.datasets import Images


def drawn(temperature, n=4000, seed=0):
    """Logits (n, 4) and labels drawn from their softmax at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(n, 4)).astype(np.float32)
    return logits, (logits / temperature + random.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_drawn_labels_is_found(temperature):
    # The standard error of the estimate is about 3 % with 4,000 images.
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.12)


def test_labels_without_an_error_change_no_probability():
    """The likelihood would have no maximum: ever lower temperatures would make every probability 1."""
    logits, _ = drawn(1)
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    logits = np.log(np.array([[0.8, 0.2]] * 10, dtype=np.float32))
    assert calibration_error(logits, np.array([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-6)
    assert calibration_error(logits, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.3, abs=1e-6)
    certain = np.array([[100.0, 0.0]], dtype=np.float32)
    assert calibration_error(certain, np.array([1])) == pytest.approx(1)


def test_each_beta_has_its_own_temperature_and_its_errors_on_other_images():
    sharp, labels = drawn(1)
    parts = random_halves(LabelledLogits(np.stack([sharp, sharp * 3]), labels))
    rows = fit_calibration(*parts, (0.0, 1.0))
    assert [(row.beta, row.n_fitted, row.n) for row in rows] == [(0.0, 2000, 2000), (1.0, 2000, 2000)]
    assert rows[1].temperature == pytest.approx(3 * rows[0].temperature, rel=0.01)
    assert rows[1].error_before > 0.1 > 0.04 > rows[1].error
    halves = random_halves(LabelledLogits(np.stack([sharp]), labels))
    assert fit_calibration(*halves, (0.0,)) == [rows[0]]  # the same halves in every call


def test_few_images_give_no_temperature():
    logits, labels = drawn(1, MIN_IMAGES)
    enough, too_few = LabelledLogits(logits[None], labels), LabelledLogits(logits[None, 1:], labels[1:])
    assert len(fit_calibration(enough, enough, (0.0,))) == 1
    assert fit_calibration(too_few, enough, (0.0,)) == fit_calibration(enough, too_few, (0.0,)) == []


def labelled_images(n):
    """n images whose labels are their brightness, 0 or 1."""
    labels = np.arange(n) % 2
    return Images(np.repeat(labels, 3).astype(np.uint8).reshape(n, 1, 1, 3), labels)


def brightness_logits(pixels, betas):
    """Logits that are right with a scale of 1 + β."""
    return np.stack([1 - pixels[:, 0, 0, 0], pixels[:, 0, 0, 0]], axis=1) * (1 + np.float32(betas[0]))


def test_validation_images_fit_and_test_images_measure():
    dial = measure_dial(brightness_logits, labelled_images(70), labelled_images(40))
    assert dial["strength"].n == 40
    assert {(row.n_fitted, row.n, row.images) for row in dial["calibration"]} == {(40, 70, "validation and test")}


def test_without_validation_images_all_fit_the_curve_and_halves_the_temperatures():
    dial = measure_dial(brightness_logits, labelled_images(71), None)
    assert dial["strength"].n == 71
    assert {(row.n_fitted, row.n, row.images) for row in dial["calibration"]} == {(35, 36, "random halves")}
