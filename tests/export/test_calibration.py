import numpy as np
import pytest

from export.calibration import (
    BETAS,
    MIN_IMAGES,
    LabelledLogits,
    calibration_error,
    fit_calibration,
    fit_temperature,
    logits_by_beta,
    measure_dial,
    random_halves,
    strength_curve,
)
from training.data.datasets import Images
from training.errors import DivergedError
from training.evaluation.accuracy import BATCH
from tureen.bundle.manifest import UNMEASURED_STRENGTH

THIRDS = (0.0, 0.25, 0.75, 1.0)


def on_a_line(shares):
    """Logits (T, 5, 3) at these shares of the way from a clean to a robust mode."""
    clean, robust = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    return np.stack([clean + share * (robust - clean) for share in shares])


def drawn(temperature, n=4000, seed=0):
    """Logits (n, 4) and labels drawn from their softmax at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(n, 4)).astype(np.float32)
    return logits, (logits / temperature + random.gumbel(size=logits.shape)).argmax(axis=1)


def test_the_strength_is_the_share_of_the_way_of_the_logits():
    curve = strength_curve(on_a_line([0, 0.1, 0.8, 1]), THIRDS)
    assert (curve.betas, curve.n) == (list(THIRDS), 5)
    assert curve.strengths == pytest.approx([0, 0.1, 0.8, 1], abs=1e-5)
    assert curve.beta_at(0.45) == pytest.approx(0.5, abs=1e-4)


def test_a_detour_across_the_way_does_not_count():
    logits = on_a_line([0, 0.5, 1])
    way = logits[-1] - logits[0]
    detour = np.random.default_rng(1).normal(size=way.shape)
    logits[1] += detour - (detour * way).sum() / (way**2).sum() * way
    assert strength_curve(logits, (0.0, 0.5, 1.0)).beta_at(0.5) == pytest.approx(0.5, abs=1e-4)


def test_a_curve_ascends_where_the_logits_turn_back_or_go_past_an_end():
    # -0.2 becomes 0 and 1.3 becomes 1, which are the ends; 0.6 and 0.4 become one mean.
    curve = strength_curve(on_a_line([0, -0.2, 0.6, 0.4, 1.3, 1]), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert curve.betas == [0, 0.4, 1]
    assert curve.strengths == pytest.approx([0, 0.5, 1], abs=1e-5)


def test_equal_modes_have_no_curve():
    assert strength_curve(on_a_line([0, 0, 0, 0]), THIRDS) == UNMEASURED_STRENGTH


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_drawn_labels_is_found(temperature):
    # The standard error of the estimate is about 3 % with 4,000 images.
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.12)


def test_perfect_labels_give_the_lowest_temperature():
    logits, _ = drawn(1)
    assert fit_temperature(logits, logits.argmax(axis=1)) == pytest.approx(1 / 20, rel=0.01)


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


def test_the_logits_at_each_beta_are_computed_in_batches():
    calls, seen = [], []

    def predict(pixels, betas):
        calls.append((len(pixels), *set(betas)))
        return np.full((len(pixels), 2), betas[0], np.float32)

    images = Images(np.zeros((BATCH + 1, 2, 2, 3), np.uint8), np.zeros(BATCH + 1, np.int64))
    logits = logits_by_beta(predict, images, (0.0, 0.5), seen.append)
    assert logits.shape == (2, BATCH + 1, 2)
    assert (logits[1] == 0.5).all()
    assert calls == [(BATCH, 0.0), (BATCH, 0.5), (1, 0.0), (1, 0.5)]
    assert sum(seen) == 2 * (BATCH + 1)
    assert (BETAS[0], BETAS[-1], len(BETAS)) == (0, 1, 21)


def test_logits_that_are_not_finite_give_no_curve():
    images = Images(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(DivergedError):
        logits_by_beta(lambda pixels, betas: np.full((1, 2), np.nan, np.float32), images)
