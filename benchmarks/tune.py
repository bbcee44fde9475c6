"""Measures how much accuracy `tureen tune` gains on corrupted images, by the number of labelled images.

    python -m benchmarks.tune runs/digits

`tureen tune` chooses β from labelled images. The benchmark corrupts the held-out images of a training run, and draws
random samples of them. It chooses β on each sample, and measures the accuracy on the other images: at the chosen β, at
the best β for these images, and at β = 0. Then prints the accuracy that tuning reports, and how often the reported
interval of β contains the best β. All figures are means over the samples. The argument is a run, because a bundle
contains no labelled images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from training.checkpoint import load_checkpoint
from training.data.datasets import Images
from training.evaluation.accuracy import correct_by_beta, make_predictor
from training.evaluation.corruptions import corrupt
from training.evaluation.tune import choose_beta
from tureen.tokens import beta_grid

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "motion_blur", "fog", "contrast", "pixelate", "translation")


@dataclass(frozen=True)
class DrawResult:
    """The result of choosing β on one random sample.

    chosen, best, clean: accuracy on the images outside the sample, at the chosen β, at the best β for these images, and
    at β = 0. reported: the accuracy on the sample that tuning reports. holds_best: whether the interval of β that
    tuning reports contains the best β. width: the width of that interval.
    """

    chosen: float
    best: float
    clean: float
    reported: float
    holds_best: bool
    width: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output directory of `tureen train`")
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS)
    parser.add_argument("--severities", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--betas", type=beta_grid, default="0:1:0.1")
    parser.add_argument("--draws", type=int, default=50)
    options = parser.parse_args()
    if not options.run.is_dir():
        parser.error(f"no directory {options.run}: `tureen demo --train digits --no-serve` creates tureen-demo/run-…")
    checkpoint = load_checkpoint(options.run)
    held_out, predict = checkpoint.test, make_predictor(checkpoint.model)
    print(describe_machine())
    print(f"{checkpoint.recipe.name}, {len(held_out)} held-out images, {options.draws} draws, accuracy in %")
    print(
        f"{'corruption':<26}{'images':>7}{'chosen':>8}{'best β':>8}{'β = 0':>8}{'reported':>10}{'holds':>8}{'width':>8}"
    )
    everything: dict[int, list[DrawResult]] = {count: [] for count in options.images}
    for name in options.corruptions:
        for severity in options.severities:
            images = Images(corrupt(held_out.pixels, name, severity), held_out.labels)
            correct = correct_by_beta(predict, images, options.betas)
            for count in options.images:
                draws = evaluate_draws(correct, options.betas, count=count, draws=options.draws)
                everything[count] += draws
                print(f"{f'{name}, severity {severity}':<26}{format_means(count, draws)}", flush=True)
    for count, draws in everything.items():
        print(f"{'all, mean':<26}{format_means(count, draws)}")


def evaluate_draws(correct: NDArray[np.bool_], betas: Sequence[float], *, count: int, draws: int) -> list[DrawResult]:
    """Chooses β on `count` random images and evaluates it on the other images, `draws` times. Returns all results.

    correct: bool (number of β, number of images), whether each image is classified correctly at each of `betas`.
    """
    generator = np.random.default_rng(0)
    results = []
    for _ in range(draws):
        order = generator.permutation(correct.shape[1])
        tuned = choose_beta(correct[:, order[:count]], betas)
        accuracy = dict(zip(betas, correct[:, order[count:]].mean(axis=1), strict=True))
        best = max(accuracy.values())
        results.append(
            DrawResult(
                chosen=accuracy[tuned.beta],
                best=best,
                clean=accuracy[0.0],
                reported=tuned.accuracy.value,
                holds_best=any(tuned.low <= beta <= tuned.high for beta in betas if accuracy[beta] == best),
                width=tuned.high - tuned.low,
            )
        )
    return results


def format_means(count: int, draws: Sequence[DrawResult]) -> str:
    """Returns one line with `count` and the means over the draws: in per cent, except the width of the interval."""
    shares = [
        100 * mean(float(getattr(draw, name)) for draw in draws)
        for name in ("chosen", "best", "clean", "reported", "holds_best")
    ]
    return f"{count:>7}{''.join(f'{share:8.1f}' for share in shares)}{mean(draw.width for draw in draws):8.2f}"


if __name__ == "__main__":
    main()
