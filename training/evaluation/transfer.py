"""Measures the transfer matrix: robust accuracy at each β under the attack on every other β.

An attack on another β may break more images than the attack on the served soup. The attack on the served soup was then
too weak, or gradients are masked (Carlini et al., *On evaluating adversarial robustness*, 2019). Such cells are marked
as suspect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.attacks.catalogue import attack_label, find_attack
from training.attacks.gradient import Forward, pgd
from training.data.datasets import Images
from training.evaluation.accuracy import (
    forward_at_beta,
    image_batches,
    is_correct,
    model_device,
    sign_test,
    wilson_interval,
)
from tureen.bundle.manifest import SuspectCell, TransferMatrix

SIGNIFICANCE = 0.05
"""Level of all tests of a matrix together; each test gets an equal share (Bonferroni)."""


def transfer_matrix(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    epsilon_255: float,
    steps: int,
    attack: str = "pgd",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> TransferMatrix:
    """Returns robust accuracies: a row for each attacked β and one for all β together, a column for each served β.

    The arguments are those of `evaluate_accuracy`, whose robust accuracies are the diagonal. The row for all β together
    is for an attacker who does not know β. Its attack is always PGD on the sum of the losses, because the other attacks
    have no such loss. An image counts in a cell if the served soup classifies it right with and without the attack. It
    counts in `worst` if it counts in all cells of the column.

    A cell is suspect if its attack breaks more images than the attack on the served soup itself. A sign test decides,
    at a level of 5 % over all comparisons. on_batch: called once for each row and batch of images.
    """
    find_adversarial, device = find_attack(attack), model_device(model)
    soups = [forward_at_beta(model, beta) for beta in betas]
    # Each attack has its own random stream, so that the diagonal equals the result of `evaluate_accuracy`.
    generators = [torch.Generator(device).manual_seed(seed) for _ in range(len(betas) + 1)]
    parts = []
    for x, labels in image_batches(images, device):
        is_clean = np.stack([is_correct(soup, x, labels) for soup in soups])  # (T, B)
        rows = []
        for index, generator in enumerate(generators):
            if index < len(soups):
                adversarial = find_adversarial(
                    soups[index], x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator
                )
            else:
                adversarial = joint_pgd(soups, x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator)
            rows.append(is_clean & np.stack([is_correct(soup, adversarial, labels) for soup in soups]))
            on_batch()
        parts.append(np.stack(rows))
    robust = np.concatenate(parts, axis=2)  # (T + 1, T, n)
    shares = robust.mean(axis=2).tolist()
    return TransferMatrix(
        betas=list(betas),
        n=len(images),
        attack=attack_label(attack, steps),
        epsilon_255=epsilon_255,
        robust=shares[:-1],
        joint_attack=attack_label("pgd", steps),
        joint=shares[-1],
        worst=[wilson_interval(int(robust[:, column].all(axis=0).sum()), len(images)) for column in range(len(betas))],
        suspects=suspect_cells(robust, betas),
    )


def joint_pgd(
    forwards: Sequence[Forward],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns images after PGD on the sum of the cross-entropies of all `forwards`.

    The other arguments are those of `training.attacks.gradient`. For T functions, that sum is the cross-entropy of
    stacked logits (B, K, T) and repeated labels (B, T).
    """

    def together(x: Tensor) -> Tensor:
        return torch.stack([forward(x) for forward in forwards], dim=2)

    return pgd(
        together,
        images,
        labels[:, None].expand(-1, len(forwards)),
        epsilon=epsilon,
        steps=steps,
        step_size=2.5 * epsilon / steps,
        generator=generator,
    )


def suspect_cells(robust: NDArray[np.bool_], betas: Sequence[float]) -> list[SuspectCell]:
    """Returns the cells of robust, bool (T + 1, T, n), that are significantly below the diagonal of their column."""
    found = []
    for row, attacked in enumerate([*betas, None]):
        for column, served in enumerate(betas):
            p_value = sign_test(robust[column, column], robust[row, column])
            if row != column and p_value < SIGNIFICANCE / len(betas) ** 2:
                found.append(SuspectCell(attacked=attacked, served=served, p_value=p_value))
    return found
