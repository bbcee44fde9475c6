"""Measures from the logits of a model how strength maps to β. Predicts the robust accuracy at each strength.

Strength is a scale from 0 (clean mode) to 1 (robust mode) on which equal steps move the logits equally far. The
measurement needs only logits at several β, so they may come from PyTorch or from the engine of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from training.data.datasets import Images
from training.evaluation.accuracy import Predict, predict_parts
from tureen.bundle.manifest import AccuracyRow, StrengthRow
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve
from tureen.tokens import beta_grid

BETAS = tuple(beta_grid("0:1:0.05"))
_LEAST_STEP = 1e-4  # of strength between two points of a curve


def logits_by_beta(
    predict: Predict, images: Images, betas: Sequence[float] = BETAS, on_images: Callable[[int], None] = lambda n: None
) -> NDArray[np.float32]:
    """Returns the logits of n images at each β, (T, n, K) for T β and K classes.

    predict: computes logits from pixels and one β for each image. on_images: called with the number of images since the
    last call; the total is T · n. Raises DivergedError if logits are not finite.
    """
    parts: list[list[NDArray[np.float32]]] = [[] for _ in betas]
    for index, _, logits in predict_parts(predict, images, betas):
        parts[index].append(logits)
        on_images(len(logits))
    return np.stack([np.concatenate(row) for row in parts])


def strength_curve(logits: NDArray[np.float32], betas: Sequence[float]) -> StrengthCurve:
    """Returns the curve of strength over β. betas: T values, ascending from 0 to 1.

    logits: those of n images at each β, (T, n, K) for K classes. The logits of all images at one β are one vector of
    n·K numbers. The vector is projected on the line from the vector of clean mode to that of robust mode. The strength
    of β is the position of the projection, 0 at clean mode and 1 at robust mode. Where the positions descend, an
    isotonic regression makes them ascend. The curve omits a β at which the strength does not grow. If the logits of
    both modes are equal, strength equals β.
    """
    way = (logits[-1] - logits[0]).astype(np.float64)
    length = float((way**2).sum())
    if not length:
        return UNMEASURED_STRENGTH
    projected = np.array([np.vdot(row - logits[0], way) for row in logits]) / length
    ascending = isotonic_regression(projected.clip(0, 1)).x
    points = [(0.0, 0.0)]
    for beta, strength in zip(betas[1:-1], ascending[1:-1].tolist(), strict=True):
        if points[-1][1] + _LEAST_STEP <= strength <= 1 - _LEAST_STEP:
            points.append((beta, strength))
    points.append((1.0, 1.0))
    return StrengthCurve(betas=[b for b, _ in points], strengths=[s for _, s in points], n=logits.shape[1])


def strength_rows(
    curve: StrengthCurve, test: Sequence[AccuracyRow], validation: Sequence[AccuracyRow]
) -> list[StrengthRow]:
    """Returns a row for each β: the accuracy on test images, and the robust accuracy that validation images predict.

    curve: gives the strength of each β. test, validation: rows at the same β, ascending, at least one. The prediction
    comes from an isotonic regression of the robust accuracy on the validation images. So the predicted accuracy never
    falls when the strength rises.
    """
    predicted = isotonic_regression([row.robust.value for row in validation]).x.clip(0, 1).tolist()
    return [
        StrengthRow(
            **row.model_dump(),
            strength=curve.strength_at(row.beta),
            predicted_robust=share,
            n_fitted=fitted.n,
        )
        for row, fitted, share in zip(test, validation, predicted, strict=True)
    ]
