"""The transfer matrix: how far attacks on one β carry to another. Where one does better than the attack on the very
soup served, that attack was weak, or gradients are masked (Carlini et al., *On evaluating adversarial robustness*,
2019).

Knows how to count; a suspect found is a reason to distrust a figure, and what to do about it is for people.
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
from training.evaluation.accuracy import at_beta, batches, device_of, right, sign_test, wilson
from tureen.bundle.manifest import Suspect, TransferMatrix

SIGNIFICANCE = 0.05
"""Of all the matrix's tests together: each is held to its share (Bonferroni)."""


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
    """Attack every β, and judge what came of it at every β: T + 1 rows of T robust accuracies on the same images.

    The arguments are those of `evaluate`, whose robust accuracies are the diagonal. The row beyond the T is the attack
    on all β at once, the right one where β is hidden or may change: PGD on the sum of their losses whatever `attack`
    is, since no single loss of the others is that sum. An image counts in a cell if the soup served is right about it
    with and without the attack, and in `worst` if it counts in all cells of the column: the worst is taken image by
    image.

    A cell is suspect where a sign test finds that its attack breaks more images of that soup than the attack on the
    soup itself does, at a level of 5 % over all comparisons. on_batch: called (T + 1) times a batch of images.
    """
    find_adversarial, device = find_attack(attack), device_of(model)
    soups = [at_beta(model, beta) for beta in betas]
    # Each attack draws from its own stream, so that the diagonal is what `evaluate` measures.
    generators = [torch.Generator(device).manual_seed(seed) for _ in range(len(betas) + 1)]
    parts = []
    for x, labels in batches(images, device):
        is_right = np.stack([right(soup, x, labels) for soup in soups])  # (T, B)
        rows = []
        for index, generator in enumerate(generators):
            if index < len(soups):
                adversarial = find_adversarial(
                    soups[index], x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator
                )
            else:
                adversarial = joint_pgd(soups, x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator)
            rows.append(is_right & np.stack([right(soup, adversarial, labels) for soup in soups]))
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
        worst=[wilson(int(robust[:, column].all(axis=0).sum()), len(images)) for column in range(len(betas))],
        suspects=suspects(robust, betas),
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
    """PGD on the sum of the cross-entropies of T forwards, in the words of `training.attacks.gradient`.

    Their logits, (B, K, T), and T labels an image, (B, T), have that sum as their cross-entropy.
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


def suspects(robust: NDArray[np.bool_], betas: Sequence[float]) -> list[Suspect]:
    """The cells of robust, bool (T + 1, T, n), that lie below the diagonal of their column by more than chance."""
    found = []
    for row, attacked in enumerate([*betas, None]):
        for column, served in enumerate(betas):
            p_value = sign_test(robust[column, column], robust[row, column])
            if row != column and p_value < SIGNIFICANCE / len(betas) ** 2:
                found.append(Suspect(attacked=attacked, served=served, p_value=p_value))
    return found
