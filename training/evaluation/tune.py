"""Choose β for a shifted distribution from a few labelled images of it.

After Croce, Rebuffi, Shelhamer & Gowal, *Seasoning model soups for robustness to adversarial and natural distribution
shifts*, CVPR 2023: soups adapt to a shift from a few examples. How they choose was not at hand: the method is ours, and
`benchmarks.tune` measures it. Knows a model as a function of pixels and β: a checkpoint or a bundle.
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
from training.evaluation.accuracy import Predict, right_answers, sign_test, wilson
from tureen.bundle.manifest import Accuracy
from tureen.tokens import CLEAN_BETA

SIGNIFICANCE = 0.05


class Gain(BaseModel):
    """A difference of accuracies on the same images with its 95 % interval, all in [−1, 1]."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class TunedBeta(BaseModel):
    """The β chosen, how sure that is, and what it is worth."""

    model_config = ConfigDict(frozen=True)

    beta: float
    low: float = Field(description="the least β that the images do not tell from the one chosen")
    high: float = Field(description="the largest")
    n: int = Field(description="number of images")
    accuracy: Accuracy = Field(description="of the choice, each image judged at the β that the others choose")
    gain: Gain = Field(description="of that over β = 0, which no image chose")
    betas: list[float] = Field(description="the β tried")
    accuracies: list[Accuracy] = Field(description="at each β tried, on all images")


def tune(predict: Predict, images: Images, betas: Sequence[float]) -> TunedBeta:
    """The β of `betas` that suits the images; raises what `choose_beta` raises."""
    return choose_beta(right_answers(predict, images, betas), betas)


def choose_beta(correct: NDArray[np.bool_], betas: Sequence[float]) -> TunedBeta:
    """The most accurate β; where several are, the middle of the longest run of them, the lower if there are two.

    correct: bool (T, n), whether image i is right at β t. betas: T of them, ascending, 0 among them.

    Few images leave many β equal, and the middle of such a plateau is the furthest from where accuracy falls. Log-loss
    in the place of accuracy chooses better from 10 or 50 shifted digits and worse from 200: it favours β that are less
    sure of themselves, right or wrong.

    The interval spans every β that is not less accurate than the one chosen by a sign test at the 5 % level. To choose
    again from resampled images, the usual way, promises too much: of such 95 % intervals from 10 digits less than half
    held the best β. The accuracy is that of leaving each image out in turn, since the images that choose a β flatter
    it; the gain's interval is Bonett & Price's (British Journal of Mathematical and Statistical Psychology, 2012).
    Raises RecipeError for β that do not ascend or lack 0, DataError for fewer than two images.
    """
    if CLEAN_BETA not in betas or list(betas) != sorted(set(betas)):
        raise RecipeError(f"the β to choose from ascend and hold 0, unlike {', '.join(f'{b:g}' for b in betas)}")
    n = correct.shape[1]
    if n < 2:
        raise DataError(f"β cannot be chosen from {n} labelled images: give 10 at least, better 200")
    counts = correct.sum(axis=1, dtype=np.int64)
    chosen = _best(counts)
    equals = [
        beta
        for beta, answers in zip(betas, correct, strict=True)
        if sign_test(correct[chosen], answers) >= SIGNIFICANCE
    ]
    others_choice = [_best(counts - correct[:, image]) for image in range(n)]
    left_out = correct[others_choice, np.arange(n)]
    return TunedBeta(
        beta=betas[chosen],
        low=min(equals),
        high=max(equals),
        n=n,
        accuracy=wilson(int(left_out.sum()), n),
        gain=_gain(left_out, correct[list(betas).index(CLEAN_BETA)]),
        betas=list(betas),
        accuracies=[wilson(int(count), n) for count in counts],
    )


def tuned_table(tuned: TunedBeta) -> str:
    """What was chosen and how sure that is, as text for a terminal."""
    gain = tuned.gain
    lines = [f"{'β':>6}  {'accuracy':>20}   on {tuned.n} images, % (95 % interval)"]
    for beta, accuracy in zip(tuned.betas, tuned.accuracies, strict=True):
        cell = f"{100 * accuracy.value:5.1f} ({100 * accuracy.low:4.1f}–{100 * accuracy.high:5.1f})"
        lines.append(f"{beta:6.2f}  {cell:>20}{'   chosen' if beta == tuned.beta else ''}")
    lines += [
        "",
        f"β = {tuned.beta:g}; {tuned.n} images do not tell it from any β between {tuned.low:g} and {tuned.high:g}",
        f"expected accuracy {100 * tuned.accuracy.value:.1f} % "
        f"({100 * tuned.accuracy.low:.1f}–{100 * tuned.accuracy.high:.1f}), "
        f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) over β = 0, "
        "each image left out in turn",
    ]
    if (tuned.low, tuned.high) == (tuned.betas[0], tuned.betas[-1]):
        lines.append("so few images, or so small a difference, leave β open: more images may settle it")
    return "\n".join(lines)


def _best(counts: NDArray[np.int64]) -> int:
    """The index in counts (T,) of the largest; of several the middle of the longest run of them."""
    top = np.flatnonzero(counts == counts.max())
    runs = np.split(top, np.flatnonzero(np.diff(top) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def _gain(answers: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Gain:
    """answers, baseline: bool (n,). Bonett & Price add one image to each side before they take the normal interval."""
    n = len(answers)
    won, lost = int((answers & ~baseline).sum()), int((baseline & ~answers).sum())
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    centre, value = up - down, (won - lost) / n
    return Gain(value=value, low=max(-1.0, min(value, centre - half)), high=min(1.0, max(value, centre + half)))
