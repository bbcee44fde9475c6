"""The map from strength to β, and the robust accuracy that validation images predict."""

import numpy as np
import pytest

from training.data.datasets import Images
from training.errors import DivergedError
from training.evaluation.accuracy import BATCH, wilson_interval
from training.evaluation.strengths import BETAS, logits_by_beta, strength_curve, strength_rows
from tureen.bundle.manifest import AccuracyRow
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve

THIRDS = (0.0, 0.25, 0.75, 1.0)


def on_a_line(shares):
    """Logits (T, 5, 3) at these shares of the way from a clean to a robust mode."""
    clean, robust = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    return np.stack([clean + share * (robust - clean) for share in shares])


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


def accuracy_rows(n, *robust):
    return [
        AccuracyRow(
            beta=beta,
            n=n,
            clean=wilson_interval(n, n),
            robust=wilson_interval(count, n),
            attack="APGD-20",
            epsilon_255=8,
        )
        for beta, count in zip(THIRDS, robust, strict=True)
    ]


def test_the_prediction_rises_with_the_strength_and_the_accuracy_is_that_of_the_test_images():
    curve = StrengthCurve(betas=[0, 0.25, 0.75, 1], strengths=[0, 0.5, 0.9, 1], n=9)
    rows = strength_rows(curve, accuracy_rows(50, 5, 10, 20, 30), accuracy_rows(10, 1, 4, 2, 6))
    assert [(row.strength, row.robust.value) for row in rows] == [(0, 0.1), (0.5, 0.2), (0.9, 0.4), (1, 0.6)]
    # Of 0.1, 0.4, 0.2 and 0.6, the regression replaces the two that fall by their mean.
    assert [row.predicted_robust for row in rows] == pytest.approx([0.1, 0.3, 0.3, 0.6])
    assert {(row.n, row.n_fitted) for row in rows} == {(50, 10)}
