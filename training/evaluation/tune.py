"""Chooses β for a shifted distribution from a few labelled images of this distribution.

Model soups adapt to a shift from a few examples: Croce, Rebuffi, Shelhamer & Gowal, *Seasoning model soups for
robustness to adversarial and natural distribution shifts*, CVPR 2023. The selection method of that paper was not
available, so Tureen has its own method. `benchmarks.tune` measures how well it works. The model is a function of pixels
and β, from a checkpoint or a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import norm

from training.data.datasets import Images
from training.errors import DataError, RecipeError
from training.evaluation.accuracy import Predict, correct_by_beta, sign_test, wilson_interval
from tureen.bundle.manifest import Accuracy
from tureen.tokens import CLEAN_BETA

SIGNIFICANCE = 0.05


class AccuracyGain(BaseModel):
    """The difference `value` of two accuracies on the same images, in [−1, 1].

    low, high: ends of the 95 % interval of the difference.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class TunedBeta(BaseModel):
    """The chosen β, the interval that contains every β that may be the best, and the accuracy at the chosen β."""

    model_config = ConfigDict(frozen=True)

    beta: float
    low: float = Field(description="lowest β whose accuracy is not significantly lower than that of the chosen β")
    high: float = Field(description="highest such β")
    n: int = Field(description="number of images")
    accuracy: Accuracy = Field(description="accuracy of the choice: each image at the β that the other images choose")
    gain: AccuracyGain = Field(description="difference of `accuracy` and the accuracy at β = 0")
    betas: list[float] = Field(description="the β to choose from")
    accuracies: list[Accuracy] = Field(description="accuracy at each of `betas`, on all images")


def tune_beta(predict: Predict, images: Images, betas: Sequence[float]) -> TunedBeta:
    """Returns the β in `betas` that is most accurate on the images, with its interval and accuracy.

    predict: computes logits from pixels and one β for each image. Raises the errors of `choose_beta`, and DivergedError
    if logits are not finite.
    """
    return choose_beta(correct_by_beta(predict, images, betas), betas)


def choose_beta(correct: NDArray[np.bool_], betas: Sequence[float]) -> TunedBeta:
    """Returns the most accurate β, the interval that contains every β that may be the best, and the accuracy.

    correct: whether each of n images is classified correctly at each of T β, bool (T, n). betas: the T β, ascending,
    with 0. If several β have the highest accuracy, finds the longest sequence of neighbours among them, and chooses the
    middle of this sequence; of two middles, the lower.

    With few images many β are equally accurate. The middle of such a plateau is furthest from its ends, where accuracy
    falls. A choice by log-loss, not by accuracy, was better with 10 or 50 shifted digits, but worse with 200. Log-loss
    prefers a β with less confident predictions, correct or not.

    The interval contains every β that a sign test at the 5 % level does not find less accurate than the chosen β. The
    usual bootstrap interval is too narrow: with 10 digits, less than half of the 95 % intervals contained the best β.
    The accuracy is a leave-one-out estimate, because accuracy on the images that determined the choice is too high. The
    interval of the gain is that of Bonett & Price (British Journal of Mathematical and Statistical Psychology, 2012).

    Raises RecipeError if the β do not ascend or do not include 0, and DataError if there are fewer than two images.
    """
    if CLEAN_BETA not in betas or list(betas) != sorted(set(betas)):
        raise RecipeError(f"the β to choose from must ascend and contain 0: {', '.join(f'{b:g}' for b in betas)}")
    n = correct.shape[1]
    if n < 2:
        raise DataError(f"{n} labelled images are too few to choose β: give at least 10, better 200")
    counts = correct.sum(axis=1, dtype=np.int64)
    chosen = best_index(counts)
    candidates = [
        beta for beta, row in zip(betas, correct, strict=True) if sign_test(correct[chosen], row) >= SIGNIFICANCE
    ]
    choice_without_image = [best_index(counts - correct[:, image]) for image in range(n)]
    left_out = correct[choice_without_image, np.arange(n)]
    return TunedBeta(
        beta=betas[chosen],
        low=min(candidates),
        high=max(candidates),
        n=n,
        accuracy=wilson_interval(int(left_out.sum()), n),
        gain=_accuracy_gain(left_out, correct[list(betas).index(CLEAN_BETA)]),
        betas=list(betas),
        accuracies=[wilson_interval(int(count), n) for count in counts],
    )


def best_index(counts: NDArray[np.int64]) -> int:
    """Returns the index of the largest value in `counts`, int64 (T,), as `choose_beta` chooses a β.

    If several are largest, returns the middle of the longest sequence of neighbours among them; of two middles, the
    lower.
    """
    top = np.flatnonzero(counts == counts.max())
    runs = np.split(top, np.flatnonzero(np.diff(top) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def tuned_table(tuned: TunedBeta) -> str:
    """Returns the accuracy at each β, the chosen β, its interval and its gain as text for a terminal."""
    gain = tuned.gain
    lines = [f"{'β':>6}  {'accuracy':>20}   on {tuned.n} images, % (95 % interval)"]
    for beta, accuracy in zip(tuned.betas, tuned.accuracies, strict=True):
        cell = f"{100 * accuracy.value:5.1f} ({100 * accuracy.low:4.1f}–{100 * accuracy.high:5.1f})"
        lines.append(f"{beta:6.2f}  {cell:>20}{'   chosen' if beta == tuned.beta else ''}")
    lines += [
        "",
        f"β = {tuned.beta:g}; on {tuned.n} images no β between {tuned.low:g} and {tuned.high:g} is significantly worse",
        f"expected accuracy {100 * tuned.accuracy.value:.1f} % "
        f"({100 * tuned.accuracy.low:.1f}–{100 * tuned.accuracy.high:.1f}), "
        f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) over β = 0, "
        "leave-one-out estimate",
    ]
    if (tuned.low, tuned.high) == (tuned.betas[0], tuned.betas[-1]):
        lines.append("no β is significantly better than another: more images may show a difference")
    return "\n".join(lines)


def _accuracy_gain(correct: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> AccuracyGain:
    """Returns the accuracy of `correct` minus that of `baseline`, both bool (n,), with a 95 % interval.

    The interval is the adjusted Wald interval of Bonett & Price.
    """
    n = len(correct)
    gained, lost = int((correct & ~baseline).sum()), int((baseline & ~correct).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    centre, value = up - down, (gained - lost) / n
    return AccuracyGain(value=value, low=max(-1.0, min(value, centre - half)), high=min(1.0, max(value, centre + half)))
