"""Runs the measurements of an evaluation. Each shows a progress bar, or without a terminal a line for each tenth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from torch import nn
from tqdm import tqdm

from training.attacks.names import attack_label
from training.data.datasets import Images, load_evaluation_images
from training.distributed import cpus_per_process
from training.evaluation.accuracy import (
    BATCH,
    AttackOutcome,
    Predict,
    attack_each_beta,
    class_counts,
    ensemble_forward,
    epsilon_grid,
    evaluate_accuracy,
    evaluate_epsilon_curve,
    make_predictor,
)
from training.evaluation.attack_checks import CHECKS_AT_A_MODE, CHECKS_AT_EACH_BETA, MODES, check_attack
from training.evaluation.corruptions import SEVERITIES
from training.evaluation.shift_accuracy import evaluate_shifts
from training.evaluation.strengths import BETAS, logits_by_beta, strength_curve, strength_rows
from training.evaluation.transfer import transfer_matrix
from tureen.bundle.manifest import AccuracyRow, AttackCheck, ClassCounts, Norm, ShiftRow, StrengthRow, TransferMatrix
from tureen.preprocess import PreprocessSpec
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Measurement:
    """Runs several measurements of one model on the same images, with the same attack and radius.

    betas: the β to evaluate. attack, steps, norm: the attack; `matrix`, `ensembles` and `epsilon_curve` are for l∞
    only. epsilon_255: radius in `norm`, in 1/255. Each measurement shows a progress bar.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        betas: Sequence[float],
        *,
        attack: str,
        steps: int,
        epsilon_255: float,
        norm: Norm = "linf",
    ) -> None:
        self._model, self._images, self._betas = model, images, list(betas)
        self._attack, self._steps, self._epsilon_255, self._norm = attack, steps, epsilon_255, norm
        self._batches = -(-len(images) // BATCH)

    @cached_property
    def _outcomes(self) -> dict[float, AttackOutcome]:
        """The result of the attack at each β. The first access runs the attack; later ones return the same result."""
        with _bar(attack_label(self._attack, self._steps), len(self._betas) * self._batches, "batch") as advance:
            return attack_each_beta(
                self._model,
                self._images,
                betas=self._betas,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                norm=self._norm,
                on_batch=advance,
            )

    def accuracy(self) -> list[AccuracyRow]:
        """Returns the clean and the robust accuracy at each β, one row for each."""
        label = attack_label(self._attack, self._steps)
        return [outcome.row(beta, label, self._epsilon_255, self._norm) for beta, outcome in self._outcomes.items()]

    def by_class(self, classes: int) -> list[ClassCounts]:
        """Returns three numbers of images for each class: all, correct without an attack, and robust.

        Returns one entry for β = 0 and one for β = 1, if these are among the β to evaluate. classes: number of classes.
        """
        return [
            class_counts(beta, self._outcomes[beta], self._images.labels, classes)
            for beta in (CLEAN_BETA, ROBUST_BETA)
            if beta in self._outcomes
        ]

    def ensembles(self) -> list[AccuracyRow]:
        """Returns the accuracy of the ensemble of both modes at each β strictly between 0 and 1.

        The ensemble averages the probabilities of clean and robust mode, weighted by β. At β = 0 and 1 the ensemble
        would be the mode itself.
        """
        chosen = [beta for beta in self._betas if CLEAN_BETA < beta < ROBUST_BETA]
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

    def checks(self, *, omitted: Collection[float] = ()) -> list[AttackCheck]:
        """Returns the results of `check_attack`, which checks that the attack is strong enough.

        omitted: the β at which the attack is not checked.
        """
        outcomes = {beta: outcome for beta, outcome in self._outcomes.items() if beta not in omitted}
        most = len(outcomes) * CHECKS_AT_EACH_BETA + len(outcomes.keys() & set(MODES)) * CHECKS_AT_A_MODE
        with _bar("check the attack", most, "check") as advance:
            return check_attack(
                self._model,
                self._images,
                outcomes=outcomes,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                norm=self._norm,
                on_check=advance,
            )

    def matrix(self) -> TransferMatrix:
        """Returns the transfer matrix: the robust accuracy for each pair of an attacked β and a served β."""
        outcomes = self._outcomes
        with _bar("attacked × served β", (len(outcomes) + 1) * self._batches, "batch") as advance:
            return transfer_matrix(
                self._model,
                self._images,
                outcomes=outcomes,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                on_batch=advance,
            )

    def epsilon_curve(self) -> list[AccuracyRow]:
        """Returns the robust accuracy at each radius of `epsilon_grid` and each β."""
        radii = epsilon_grid(self._epsilon_255)
        with _bar("accuracy against ε", len(radii) * len(self._betas) * self._batches, "batch") as advance:
            return evaluate_epsilon_curve(
                self._model,
                self._images,
                betas=self._betas,
                radii_255=radii,
                steps=self._steps,
                attack=self._attack,
                on_batch=advance,
            )


def measure_strengths(
    model: nn.Module,
    test: Images,
    validation: Images,
    *,
    attack: str,
    steps: int,
    epsilon_255: float,
    checked: Collection[float] = (),
) -> tuple[list[StrengthRow], list[AttackCheck]]:
    """Returns the accuracy on the test images at five strengths, and the results of the checks of the attack.

    A strength is a number from 0 (clean mode) to 1 (robust mode). A curve maps strength to β. It is fitted on the
    validation images. Each row has two robust accuracies: the measured one, and a prediction from the validation
    images.
    Attacks the test and the validation images. Shows progress bars. checked: β at which the attack is not checked
    again. The other arguments and the errors are those of `attack_each_beta`.
    """
    curve = strength_curve(logits_by_beta(make_predictor(model), validation), BETAS)
    betas = [curve.beta_at(strength) for strength in STRENGTHS]
    on_test, on_validation = (
        Measurement(model, images, betas, attack=attack, steps=steps, epsilon_255=epsilon_255)
        for images in (test, validation)
    )
    rows = strength_rows(curve, on_test.accuracy(), on_validation.accuracy())
    return rows, on_test.checks(omitted=checked)


def measure_shifts(predict: Predict, images: Images, betas: Sequence[float], names: Sequence[str]) -> list[ShiftRow]:
    """Returns the accuracy at each β under each corruption or shift in `names`. Shows a progress bar."""
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
    """Returns the images that `load_evaluation_images` loads. The arguments and the errors are the same.

    Shows a progress bar, and prints the names of the images that cannot be decoded. data: location of the images.
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
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` units. Shows progress on standard error.

    On a terminal this is a bar, without one a line for each tenth.
    """
    done = 0
    with tqdm(total=total, desc=description, unit=unit, disable=None) as bar:

        def advance() -> None:
            nonlocal done
            done += 1
            bar.update()
            if bar.disable and 10 * done // total > 10 * (done - 1) // total:  # a tenth more
                print(f"{description}: {done / total:.0%}", file=sys.stderr, flush=True)

        yield advance


@contextmanager
def _bar(part: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    with progress_bar(f"measure, {part}", total, unit) as advance:
        yield advance
