"""Measures what `tureen adapt` gains on corrupted images over β, and what it loses in robust accuracy.

    python -m benchmarks.adapt --data signs=gtsrb/test cifar10=cifar10/test --shifts fog contrast --n 10 50

For each example, shift and number n of images: learns from n images as the command does, and measures on other images.
Prints the accuracy at β = 0, at the β that is best on the n images (tuned), at the β that is best on the measured
images (hindsight), at the learned token, at the token or β that the command keeps, at the token that was learned under
an attack, and of a linear probe. The probe is a logistic regression on the features before the classifier, with the
token β = 0. It replaces the classifier, so it is no token, and needs a separate artefact for each shift.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from export.commands.adapt import BETAS, BETAS_UNDER_ATTACK
from export.commands.parsers import ADAPT_STEPS, LEARNING_RATE
from export.torch_soup import model_of_bundle
from training.adapt.comparison import ATTACK, compare, has_won
from training.adapt.cross_validation import (
    FinishedRuns,
    correct_by_start,
    cross_validate,
    token_after,
)
from training.adapt.learning import FrozenModel, LearningSettings, token_forward
from training.attacks.names import attack_label
from training.data.datasets import Images, load_evaluation_images
from training.distributed import best_device, limit_threads
from training.evaluation.accuracy import run_attack, wilson_interval
from training.evaluation.corruptions import corrupt
from training.evaluation.tune import best_index
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import find_bundle

SHIFTS = ("fog", "contrast", "gaussian_noise", "brightness", "pixelate", "greyscale")
SETTINGS = ("β = 0", "tuned β", "hindsight β", "token", "kept", "robust token", "probe")
ATTACK_STEPS = 20


@dataclass(frozen=True)
class Learned:
    """What the command learns from some images: a token, and the token or soup that it keeps. steps: of the token."""

    token: Tensor
    kept: Tensor
    beta: float
    steps: int
    has_won: bool
    p_value: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="EXAMPLE=DIR", help="images of each example")
    parser.add_argument("--examples", nargs="+", help="only these (default: those of --data)")
    parser.add_argument("--shifts", nargs="+", default=SHIFTS)
    parser.add_argument("--severity", type=int, default=4)
    parser.add_argument("--n", type=int, nargs="+", default=[10, 50, 200], help="images to learn from")
    parser.add_argument("--measured", type=int, default=500, help="other images, to measure (default: %(default)s)")
    parser.add_argument("--attacked", type=int, default=0, help="of them, to measure robust accuracy (default: none)")
    parser.add_argument("--no-robust", action="store_true", help="omit the token that is learned under an attack")
    parser.add_argument("--steps", type=int, default=ADAPT_STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limit_threads()
    folders = dict(one.split("=", 1) for one in options.data)
    print(describe_machine())
    print(
        f"severity {options.severity}; accuracy in % (95 % interval) on {options.measured} images, seed {options.seed}"
    )
    for example in options.examples or folders:
        measure_example(example, folders[example], options)


def measure_example(example: str, folder: str, options: argparse.Namespace) -> None:
    """Prints a table for one example: a row for each shift, number of images and setting."""
    bundle = load_bundle(find_bundle(example))
    model = model_of_bundle(bundle).to(best_device())
    epsilon_255 = bundle.manifest.accuracy[0].epsilon_255
    total = max(options.n) + options.measured
    pool, _ = load_evaluation_images(folder, bundle.manifest.preprocess, bundle.manifest.labels, at_most=total)
    if len(pool) < total:
        raise SystemExit(f"{folder} has {len(pool)} images: the benchmark needs {total}")
    order = np.random.default_rng(options.seed).permutation(total)
    pool = Images(pool.pixels[order], pool.labels[order])
    for shift in options.shifts:
        shifted = Images(corrupt(pool.pixels, shift, options.severity, seed=options.seed), pool.labels)
        measured = FrozenModel(model, _part(shifted, slice(max(options.n), None)))
        for n in options.n:
            settings = LearningSettings(options.steps, options.learning_rate, options.seed)
            frozen = FrozenModel(model, _part(shifted, slice(0, n)))
            started = time.perf_counter()
            learned = learn(frozen, settings)
            seconds = time.perf_counter() - started
            tokens = {"β = 0": model.soup(0.0), "tuned β": model.soup(learned.beta)}
            hindsight = correct_by_start(measured, BETAS, settings).sum(axis=1, dtype=np.int64)
            tokens |= {
                "hindsight β": model.soup(BETAS[best_index(hindsight)]),
                "token": learned.token,
                "kept": learned.kept,
            }
            if not options.no_robust:
                tokens["robust token"] = learn(frozen, replace(settings, epsilon_255=epsilon_255)).token
            rows = np.arange(len(measured.images))
            correct = {name: measured.correct(rows, token) for name, token in tokens.items()}
            correct["probe"] = probe(frozen, measured)
            verdict = "token kept" if learned.has_won else "β kept"
            print(
                f"\n{example}, {shift}, n = {n}: {verdict}, p = {learned.p_value:.2g}, β = {learned.beta:g}, "
                f"{learned.steps} steps, {seconds:.0f} s"
            )
            attacked = _part(measured.images, slice(0, options.attacked))
            for name in SETTINGS:
                if name in correct:
                    robust = _robust(model, tokens.get(name), attacked, epsilon_255)
                    print(f"{name:<14}{_percent(correct[name])}{robust}", flush=True)


def learn(frozen: FrozenModel, settings: LearningSettings) -> Learned:
    """Learns a token from all images of `frozen` as `tureen adapt` does, but decides without an attack."""
    betas = BETAS_UNDER_ATTACK if settings.epsilon_255 else BETAS
    validation = cross_validate(frozen, betas, settings, FinishedRuns(), lambda runs: None)
    rows = np.arange(len(frozen.images))
    token = token_after(frozen, rows, validation.start, settings, steps=validation.steps)
    accuracy = compare(frozen, validation)
    is_winner = has_won(accuracy) and validation.steps > 0
    kept = token if is_winner else frozen.model.soup(validation.start)
    return Learned(token, kept, validation.start, validation.steps, is_winner, accuracy.p_value)


def probe(frozen: FrozenModel, measured: FrozenModel) -> NDArray[np.bool_]:
    """Returns whether a linear probe on the images of `frozen` classifies each image of `measured` correctly."""
    from sklearn.linear_model import LogisticRegression

    labels = frozen.images.labels
    fitted = LogisticRegression(max_iter=1000).fit(features(frozen), labels)
    correct: NDArray[np.bool_] = fitted.predict(features(measured)) == measured.images.labels
    return correct


@torch.no_grad()
def features(frozen: FrozenModel) -> NDArray[np.float32]:
    """Returns the input of the classifier for each image at β = 0, float32 (n, D)."""
    forward = token_forward(frozen.model, frozen.model.soup(0.0))
    with _without_classifier(frozen.model):
        parts = [forward(frozen.pixels(rows)) for rows in np.array_split(np.arange(len(frozen.images)), 8) if len(rows)]
    found: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return found


@contextmanager
def _without_classifier(model: DualTokenViT) -> Iterator[None]:
    head = model.head
    model.head = nn.Identity()  # type: ignore[assignment]
    try:
        yield
    finally:
        model.head = head


def _robust(model: DualTokenViT, token: Tensor | None, images: Images, epsilon_255: float) -> str:
    if token is None or not len(images):
        return ""
    outcome = run_attack(
        token_forward(model, token),
        images,
        device=best_device(),
        attack=ATTACK,
        epsilon_255=epsilon_255,
        steps=ATTACK_STEPS,
        seed=0,
    )
    label = attack_label(ATTACK, ATTACK_STEPS)
    return f"   robust {_percent(outcome.robust)} on {len(images)}, {label}, ε = {epsilon_255:g}/255"


def _part(images: Images, part: slice) -> Images:
    return Images(images.pixels[part], images.labels[part])


def _percent(correct: NDArray[np.bool_]) -> str:
    accuracy = wilson_interval(int(correct.sum()), len(correct))
    return f"{100 * accuracy.value:6.1f} ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})"


if __name__ == "__main__":
    main()
