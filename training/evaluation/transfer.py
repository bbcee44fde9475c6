"""Measures the transfer matrix: the robust accuracy of the model at each β under an attack at every other β.

The served β is that of the prediction, and the attacked β is that of the attack. An attack at another β may break more
images than the attack at the served β. In this case the attack at the served β was too weak, or gradients are masked
(Carlini et al., *On evaluating adversarial robustness*, 2019). This cell of the matrix is suspect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.attacks.apgd import apgd_margin
from training.attacks.gradient import Forward
from training.attacks.names import attack_label
from training.data.datasets import Images
from training.evaluation.accuracy import (
    AttackOutcome,
    forward_at_beta,
    image_batches,
    is_correct,
    model_device,
    sign_test,
    wilson_interval,
)
from tureen.bundle.manifest import SuspectCell, TransferMatrix

SIGNIFICANCE = 0.05
"""Significance level of all tests of a matrix together. Each test has an equal share of this level (Bonferroni)."""


def transfer_matrix(
    model: nn.Module,
    images: Images,
    *,
    outcomes: Mapping[float, AttackOutcome],
    epsilon_255: float,
    steps: int,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> TransferMatrix:
    """Returns the transfer matrix, with a column for each served β, a row for each attacked β, and a row for all β.

    outcomes: for each β, the result of `run_attack` at this β on the same images, with the same radius. steps: number
    of steps of the attack. on_batch: called once for each row and batch of images.

    The attack of a row is `apgd_margin`, because its adversarial images often mislead the model at other β too. The row
    for all β is for an attacker who does not know the served β: it attacks the mean of the log-probabilities at all β.

    An image counts in a cell if the model at the served β classifies it correctly, both without an attack and under the
    attack of the row. An image counts on the diagonal only if it is also robust in `outcomes`. An image counts in
    `worst` if it counts in all cells of the column. So `worst` is never above the robust accuracy in `outcomes`.

    A cell is suspect if it is significantly below the diagonal cell of its column, by a sign test at a level of 5 %
    over all comparisons.
    """
    device, betas = model_device(model), list(outcomes)
    soups = [forward_at_beta(model, beta) for beta in betas]
    attacked = [*soups, mean_forward(soups)]
    generators = [torch.Generator(device).manual_seed(seed) for _ in attacked]
    parts = []
    for x, labels in image_batches(images, device):
        is_clean = np.stack([is_correct(soup, x, labels) for soup in soups])  # (T, B)
        rows = []
        for forward, generator in zip(attacked, generators, strict=True):
            adversarial = apgd_margin(forward, x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator)
            rows.append(is_clean & np.stack([is_correct(soup, adversarial, labels) for soup in soups]))
            on_batch()
        parts.append(np.stack(rows))
    robust = np.concatenate(parts, axis=2)  # (T + 1, T, n)
    for index, outcome in enumerate(outcomes.values()):
        robust[index, index] &= outcome.robust
    shares = robust.mean(axis=2).tolist()
    label = attack_label("apgd-margin", steps)
    return TransferMatrix(
        betas=betas,
        n=len(images),
        attack=label,
        epsilon_255=epsilon_255,
        robust=shares[:-1],
        joint_attack=f"{label} on the mean over β",
        joint=shares[-1],
        worst=[wilson_interval(int(robust[:, column].all(axis=0).sum()), len(images)) for column in range(len(betas))],
        suspects=suspect_cells(robust, betas),
    )


def mean_forward(forwards: Sequence[Forward]) -> Forward:
    """Returns a function from images to the mean of the log-probabilities of all `forwards`, (B, K)."""

    def forward(x: Tensor) -> Tensor:
        return torch.stack([F.log_softmax(forward(x).float(), dim=1) for forward in forwards]).mean(dim=0)

    return forward


def suspect_cells(robust: NDArray[np.bool_], betas: Sequence[float]) -> list[SuspectCell]:
    """Returns the cells that are significantly below the diagonal cell of their column.

    robust: whether each of n images is robust, by attacked β, served β and image: bool (T + 1, T, n) for T β. The last
    row is the attack on all β together.
    """
    found = []
    for row, attacked in enumerate([*betas, None]):
        for column, served in enumerate(betas):
            p_value = sign_test(robust[column, column], robust[row, column])
            if row != column and p_value < SIGNIFICANCE / len(betas) ** 2:
                found.append(SuspectCell(attacked=attacked, served=served, p_value=p_value))
    return found
