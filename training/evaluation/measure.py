"""The evaluation's parts with their progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm

from training.attacks.catalogue import attack_label
from training.data.datasets import Images
from training.evaluation.accuracy import BATCH, Predict, ensemble_at, epsilon_curve, epsilon_grid, evaluate
from training.evaluation.attack_checks import CHECKS, sanity_checks
from training.evaluation.corruptions import SEVERITIES
from training.evaluation.shift_accuracy import evaluate_shifts
from training.evaluation.transfer import transfer_matrix
from tureen.bundle.manifest import AccuracyRow, Check, ShiftRow, TransferMatrix
from tureen.tokens import CLEAN_BETA, ROBUST_BETA


class Measurement:
    """What all parts of an evaluation have in common: model, images, attack, radius."""

    def __init__(self, model: nn.Module, images: Images, *, attack: str, steps: int, epsilon_255: float) -> None:
        self._model, self._images = model, images
        self._attack, self._steps, self._epsilon_255 = attack, steps, epsilon_255
        self._batches = -(-len(images) // BATCH)

    def accuracy(self, betas: Sequence[float]) -> list[AccuracyRow]:
        with _bar(attack_label(self._attack, self._steps), len(betas) * self._batches, "batch") as advance:
            return evaluate(
                self._model,
                self._images,
                betas=betas,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                on_batch=advance,
            )

    def ensembles(self, betas: Sequence[float]) -> list[AccuracyRow]:
        """Between the modes alone: at 0 and 1 an ensemble is the mode itself."""
        chosen = [beta for beta in betas if CLEAN_BETA < beta < ROBUST_BETA]
        with _bar("ensembles", len(chosen) * self._batches, "batch") as advance:
            return evaluate(
                self._model,
                self._images,
                betas=chosen,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                forward_at=ensemble_at,
                on_batch=advance,
            )

    def checks(self) -> list[Check]:
        with _bar("check the attack", 2 * CHECKS, "check") as advance:
            return sanity_checks(
                self._model,
                self._images,
                epsilon_255=self._epsilon_255,
                steps=self._steps,
                attack=self._attack,
                on_check=advance,
            )

    def matrix(self, betas: Sequence[float]) -> TransferMatrix:
        """By PGD whatever the attack is: one that stops where its own soup falls is no test of another."""
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
        radii = epsilon_grid(self._epsilon_255)
        with _bar("accuracy against ε", len(radii) * len(betas) * self._batches, "batch") as advance:
            return epsilon_curve(
                self._model,
                self._images,
                betas=betas,
                radii_255=radii,
                steps=self._steps,
                attack=self._attack,
                on_batch=advance,
            )


def shifts(predict: Predict, images: Images, betas: Sequence[float], names: Sequence[str]) -> list[ShiftRow]:
    """`evaluate_shifts` with a bar."""
    with _bar("corruptions and shifts", len(names) * len(SEVERITIES), "severity") as advance:
        return evaluate_shifts(predict, images, betas=betas, names=names, on_images=advance)


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    with tqdm(total=total, desc=f"measure, {what}", unit=unit, disable=None) as bar:

        def advance() -> None:
            bar.update()

        yield advance
