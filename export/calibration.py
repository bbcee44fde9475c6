"""Measures on images how strength maps to β, and fits a temperature for each β.

Strength is a scale from clean mode (0) to robust mode (1) on which equal steps move the logits equally far. The served
probabilities are the softmax of logits / temperature. Both measurements need only logits at several β, so they may come
from PyTorch or from the engine of a bundle.
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
from tureen.bundle.manifest import CalibrationRow
from tureen.bundle.strength_curve import StrengthCurve
from tureen.interface.probabilities import probabilities

BINS = 15
MIN_IMAGES = 20
"""With fewer images, a fitted temperature or a measured calibration error is mostly noise."""
MAX_FITTING_IMAGES = 1000
MAX_MEASURING_IMAGES = 2000
"""With 2,000 images and 15 bins, the measured calibration error of a perfect model is about 0.026; with 512, 0.05."""


class DialFields(TypedDict, total=False):
    """The fields of a manifest that `measure_dial` measures. A missing field has the default of `Manifest`."""

    strength: StrengthCurve  # maps strength to β
    calibration: list[CalibrationRow]  # a temperature and calibration errors for each β


class LabelledLogits(NamedTuple):
    """Logits of n images at each of T β, (T, n, K) for K classes, and the labels of the images, int64 (n,)."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def measure_dial(predict: Predict, test: Images, validation: Images | None) -> DialFields:
    """Returns the strength curve of a model, and a temperature for each β with its calibration error.

    Fits curve and temperatures on the validation images, and measures the errors on the test images. Without validation
    images, fits the curve on all test images and the temperatures on a random half of them, and measures the errors on
    the other half.

    predict: computes logits (n, K) from pixels uint8 (n, H, W, 3) and n β, one for each image. Raises DivergedError if
    logits are not finite. Shows a progress bar.
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
    """Returns two random halves of the images, the same in every call. For an odd number, the first half is smaller."""
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
    """Returns the temperature and the calibration errors at each β of `betas`.

    fitting: the images for the fit of the temperatures. measuring: the images for the measurement of the errors.
    Returns no row if `fitting` or `measuring` has fewer than MIN_IMAGES images. images: the origin of `fitting` and
    `measuring`, for the rows.
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
    """Returns the temperature in [1/20, 20] that gives the labels the highest likelihood.

    logits: (n, K), of n images for K classes. labels: the true classes, (n,). Returns 1 if every image is classified
    correctly. In this case a lower temperature always gives a higher likelihood, and the lowest temperature would make
    every highest probability nearly 1.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        largest = scaled.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(scaled - largest).sum(axis=1)) + largest[:, 0]
        return float((log_sums - scaled[np.arange(len(labels)), labels]).mean())

    bound = math.log(20)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x)


def calibration_error(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Returns the expected calibration error, in [0, 1], of the logits (n, K) of n images with labels (n,).

    The images are sorted by their highest probability into 15 bins of equal width. The error of a bin is
    |accuracy − mean highest probability|. The result is the mean of the errors of the bins, weighted by their numbers
    of images (Guo et al., ICML 2017). With few images the result is too high, because the accuracy of a bin is noisy.
    """
    by_image = probabilities(logits)
    confidence, is_right = by_image.max(axis=1), by_image.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))
