"""What `tureen tune` gains on shifted images, and how many labelled ones that takes.

    python -m benchmarks.tune runs/digits

Corrupts the run's held-out images, chooses β from a random few of them, and measures on the others: accuracy at the β
chosen, at the β that would have been best there, and at β = 0; how often the interval told holds that best β; and how
far the accuracy told is from the one found. Means over the draws. A bundle holds no images to try this on, so it takes
the run that was exported.
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
from training.evaluation.accuracy import predictor, right_answers
from training.evaluation.corruptions import corrupt
from training.evaluation.tune import choose_beta
from tureen.tokens import beta_grid

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "motion_blur", "fog", "contrast", "pixelate", "translation")


@dataclass(frozen=True)
class Draw:
    """What one random draw of images came to, on those not drawn."""

    chosen: float
    best: float
    clean: float
    told: float
    holds_best: bool
    width: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory that `tureen train` left")
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS)
    parser.add_argument("--severities", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--betas", type=beta_grid, default="0:1:0.1")
    parser.add_argument("--draws", type=int, default=50)
    options = parser.parse_args()
    if not options.run.is_dir():
        parser.error(f"there is no {options.run}: `tureen demo --no-serve` makes tureen-demo/run-…")
    checkpoint = load_checkpoint(options.run)
    held_out, predict = checkpoint.held_out, predictor(checkpoint.model)
    print(describe_machine())
    print(f"{checkpoint.recipe.name}, {len(held_out)} held-out images, {options.draws} draws, accuracy in %")
    print(f"{'corruption':<26}{'images':>7}{'chosen':>8}{'best β':>8}{'β = 0':>8}{'told':>8}{'holds':>8}{'width':>8}")
    everything: dict[int, list[Draw]] = {count: [] for count in options.images}
    for name in options.corruptions:
        for severity in options.severities:
            images = Images(corrupt(held_out.pixels, name, severity), held_out.labels)
            correct = right_answers(predict, images, options.betas)
            for count in options.images:
                draws = draw(correct, options.betas, count=count, draws=options.draws)
                everything[count] += draws
                print(f"{f'{name}, severity {severity}':<26}{line(count, draws)}", flush=True)
    for count, draws in everything.items():
        print(f"{'all, mean':<26}{line(count, draws)}")


def draw(correct: NDArray[np.bool_], betas: Sequence[float], *, count: int, draws: int) -> list[Draw]:
    """Choose β from `count` of the images, correct (T, n), and judge it on the rest, as often as `draws`."""
    generator = np.random.default_rng(0)
    results = []
    for _ in range(draws):
        order = generator.permutation(correct.shape[1])
        tuned = choose_beta(correct[:, order[:count]], betas)
        accuracy = dict(zip(betas, correct[:, order[count:]].mean(axis=1), strict=True))
        best = max(accuracy.values())
        results.append(
            Draw(
                chosen=accuracy[tuned.beta],
                best=best,
                clean=accuracy[0.0],
                told=tuned.accuracy.value,
                holds_best=any(tuned.low <= beta <= tuned.high for beta in betas if accuracy[beta] == best),
                width=tuned.high - tuned.low,
            )
        )
    return results


def line(count: int, draws: Sequence[Draw]) -> str:
    """Means over the draws, in per cent but for the interval's width."""
    shares = [
        100 * mean(float(getattr(draw, name)) for draw in draws)
        for name in ("chosen", "best", "clean", "told", "holds_best")
    ]
    return f"{count:>7}{''.join(f'{share:8.1f}' for share in shares)}{mean(draw.width for draw in draws):8.2f}"


if __name__ == "__main__":
    main()
