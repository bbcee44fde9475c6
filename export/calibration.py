"""Measures on images how strength maps to β, and fits a temperature for each β.

Both need the logits at several β only, so they work with PyTorch and with the engine of a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from training.data.datasets import Images
from training.evaluation.accuracy import Predict
from training.evaluation.strengths import BETAS, logits_by_beta, strength_curve
from tureen.bundle.manifest import CalibrationRow, StrengthCurve
from tureen.soup import probabilities

BINS = 15
MIN_IMAGES = 20
"""Fewer images give a temperature, or an error, that is mostly noise."""
MAX_FITTING_IMAGES = 1000
MAX_MEASURING_IMAGES = 2000
"""With 15 bins and 2,000 images the error of a perfectly calibrated model is about 0.026; with 512 it is 0.05."""


class DialFields(TypedDict, total=False):
    """The fields of a manifest that `measure_dial` measures. A manifest without them has their defaults."""

    strength: StrengthCurve
    calibration: list[CalibrationRow]


class LabelledLogits(NamedTuple):
    """Logits (T, n, K) of n images at each of T β, and their labels, int64 (n,)."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def measure_dial(predict: Predict, test: Images, validation: Images | None) -> DialFields:
    """Returns the strength curve and the temperatures of a model. Shows a progress bar.

    The validation images fit both, and the test images measure the errors. Without validation images, all test images
    fit the curve. Random halves of them fit the temperatures and measure the errors.
    predict: pixels and one β for each image to logits. Raises DivergedError if logits are not finite.
    """
    total, description = len(BETAS) * (len(test) + len(validation or ())), "measure strength and calibration"
    with tqdm(total=total, desc=description, unit="image", disable=None) as bar:

        def labelled(images: Images) -> LabelledLogits:
            logits = logits_by_beta(predict, images, on_images=lambda count: bar.update(count) and None)
            return LabelledLogits(logits, images.labels)

        measuring = labelled(test)
        fitting = measuring if validation is None else labelled(validation)
    curve = strength_curve(fitting.logits, BETAS)
    if validation is not None:
        return {"strength": curve, "calibration": fit_calibration(fitting, measuring, BETAS)}
    halves = random_halves(measuring)
    return {"strength": curve, "calibration": fit_calibration(*halves, BETAS, images="random halves")}


def random_halves(images: LabelledLogits, *, seed: int = 0) -> tuple[LabelledLogits, LabelledLogits]:
    """Returns a random half of the images, rounded down, and the other half. They are the same in every call."""
    order = np.random.default_rng(seed).permutation(len(images.labels))
    parts = order[: len(order) // 2], order[len(order) // 2 :]
    first, second = (LabelledLogits(images.logits[:, part], images.labels[part]) for part in parts)
    return first, second


def fit_calibration(
    fitting: LabelledLogits,
    measuring: LabelledLogits,
    betas: Sequence[float],
    *,
    images: Literal["validation and test", "random halves"] = "validation and test",
) -> list[CalibrationRow]:
    """Returns a row for each of T β; no row if a part has fewer than MIN_IMAGES images.

    fitting: fit the temperatures, by the likelihood of their labels. measuring: measure the calibration errors.
    images: names both parts.
    """
    if min(len(fitting.labels), len(measuring.labels)) < MIN_IMAGES:
        return []
    rows = []
    for beta, fitted, measured in zip(betas, fitting.logits, measuring.logits, strict=True):
        temperature = fit_temperature(fitted, fitting.labels)
        rows.append(
            CalibrationRow(
                beta=beta,
                temperature=temperature,
                n_fitted=len(fitting.labels),
                n=len(measuring.labels),
                error_before=calibration_error(measured, measuring.labels),
                error=calibration_error(measured / temperature, measuring.labels),
                images=images,
            )
        )
    return rows


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Returns the temperature in [1/20, 20] at which labels (n,) have the highest likelihood, for logits (n, K)."""

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        largest = scaled.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(scaled - largest).sum(axis=1)) + largest[:, 0]
        return float((log_sums - scaled[np.arange(len(labels)), labels]).mean())

    bound = math.log(20)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x)


def calibration_error(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Returns the expected calibration error in [0, 1] of logits (n, K): 15 equal bins of the highest probability.

    It is the mean over the images of |accuracy − mean probability| of their bin (Guo et al., ICML 2017). With few
    images it is too high, because the accuracy of a bin is noisy.
    """
    by_image = probabilities(logits)
    confidence, is_right = by_image.max(axis=1), by_image.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))
