"""Runs the parts of an evaluation with a progress bar on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm

from training.attacks.catalogue import attack_label
from training.data.datasets import Images, load_evaluation_images
from training.distributed import cpus_per_process
from training.evaluation.accuracy import (
    BATCH,
    Predict,
    ensemble_forward,
    epsilon_grid,
    evaluate_accuracy,
    evaluate_epsilon_curve,
)
from training.evaluation.attack_checks import CHECKS, check_attack
from training.evaluation.corruptions import SEVERITIES
from training.evaluation.shift_accuracy import evaluate_shifts
from training.evaluation.transfer import transfer_matrix
from tureen.bundle.manifest import AccuracyRow, AttackCheck, ShiftRow, TransferMatrix
from tureen.preprocess import PreprocessSpec
from tureen.tokens import CLEAN_BETA, ROBUST_BETA


class Measurement:
    """Runs the parts of an evaluation on the same model, images, attack and radius; each part shows a progress bar."""

    def __init__(self, model: nn.Module, images: Images, *, attack: str, steps: int, epsilon_255: float) -> None:
        self._model, self._images = model, images
        self._attack, self._steps, self._epsilon_255 = attack, steps, epsilon_255
        self._batches = -(-len(images) // BATCH)

    def accuracy(self, betas: Sequence[float]) -> list[AccuracyRow]:
        """Returns the clean and the robust accuracy at each β."""
        with _bar(attack_label(self._attack, self._steps), len(betas) * self._batches, "batch") as advance:
            return evaluate_accuracy(
                self._model,
                self._images,
                betas=betas,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                on_batch=advance,
            )

    def ensembles(self, betas: Sequence[float]) -> list[AccuracyRow]:
        """Returns the accuracy of the ensemble of both modes at each β strictly between 0 and 1.

        At β = 0 and 1 the ensemble is the mode itself.
        """
        chosen = [beta for beta in betas if CLEAN_BETA < beta < ROBUST_BETA]
        with _bar("ensembles", len(chosen) * self._batches, "batch") as advance:
            return evaluate_accuracy(
                self._model,
                self._images,
                betas=chosen,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                forward_at=ensemble_forward,
                on_batch=advance,
            )

    def checks(self) -> list[AttackCheck]:
        """Returns the results of `check_attack`: whether the attack is strong enough to trust its accuracies."""
        with _bar("check the attack", 2 * CHECKS, "check") as advance:
            return check_attack(
                self._model,
                self._images,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                on_check=advance,
            )

    def matrix(self, betas: Sequence[float]) -> TransferMatrix:
        """Returns the transfer matrix: the robust accuracy at each β under the attack on every other β.

        The attack is PGD, because an attack that stops early on one soup does not test the others.
        """
        with _bar("attacked × served β", (len(betas) + 1) * self._batches, "batch") as advance:
            return transfer_matrix(
                self._model,
                self._images,
                betas=betas,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                on_batch=advance,
            )

    def epsilon_curve(self, betas: Sequence[float]) -> list[AccuracyRow]:
        """Returns the robust accuracy at each radius of `epsilon_grid` and each β."""
        radii = epsilon_grid(self._epsilon_255)
        with _bar("accuracy against ε", len(radii) * len(betas) * self._batches, "batch") as advance:
            return evaluate_epsilon_curve(
                self._model,
                self._images,
                betas=betas,
                radii_255=radii,
                steps=self._steps,
                attack=self._attack,
                on_batch=advance,
            )


def measure_shifts(predict: Predict, images: Images, betas: Sequence[float], names: Sequence[str]) -> list[ShiftRow]:
    """Returns the accuracy at each β under each corruption or shift in `names`; shows a progress bar."""
    with _bar("corruptions and shifts", len(names) * len(SEVERITIES), "severity") as advance:
        return evaluate_shifts(predict, images, betas=betas, names=names, on_images=advance)


def read_images(
    data: str,
    preprocess: PreprocessSpec,
    labels: Sequence[str],
    *,
    at_most: int,
    strict: bool = False,
    workers: int | None = None,
) -> Images:
    """Runs `load_evaluation_images` with a progress bar; returns the images, prints the names of skipped ones.

    workers: threads that decode; None: one for each CPU of this process.
    """
    with tqdm(desc="read images", unit="image", disable=None) as bar:
        images, skipped = load_evaluation_images(
            data,
            preprocess,
            labels,
            at_most=at_most,
            strict=strict,
            workers=cpus_per_process() if workers is None else workers,
            on_images=lambda count: bar.update(count) and None,
        )
    for name in skipped:
        print(f"skipped, cannot be decoded: {name}", file=sys.stderr)
    return images


@contextmanager
def _bar(part: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    with tqdm(total=total, desc=f"measure, {part}", unit=unit, disable=None) as bar:

        def advance() -> None:
            bar.update()

        yield advance
