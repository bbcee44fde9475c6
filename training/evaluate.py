"""Clean and robust accuracy of a dual-token model at each β, every soup attacked itself.

Robust accuracy here is empirical: an upper bound on what a better attack would leave, for one norm and one radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.attacks import pgd
from training.data import Images
from training.model import DualTokenViT, images_from_pixels
from tureen.bundle import Accuracy, AccuracyRow

BATCH = 256
Z_95 = 1.959964


def wilson(correct: int, n: int) -> Accuracy:
    """A share with its 95 % interval (Wilson, JASA 1927), which stays inside [0, 1] and is sound near its ends."""
    share = correct / n
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return Accuracy(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)))


def evaluate(
    model: DualTokenViT,
    images: Images,
    *,
    betas: Sequence[float],
    epsilon_255: float,
    steps: int,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """One row a β: accuracy on the images, and under PGD on the very soup evaluated.

    White-box: the attack follows the gradient of that soup, `steps` steps of 2.5·ε/steps from a random start (Madry
    et al., ICLR 2018, appendix). An image counts as robust only if it is right without the attack too.
    """
    device = next(model.parameters()).device
    radius = epsilon_255 / 255
    rows = []
    for beta in betas:

        def forward(x: Tensor, beta: float = beta) -> Tensor:
            return model(x, x.new_full((len(x),), beta))

        generator = torch.Generator(device).manual_seed(seed)
        clean = robust = 0
        for start in range(0, len(images), BATCH):
            x = images_from_pixels(torch.from_numpy(images.pixels[start : start + BATCH]).to(device))
            labels = torch.from_numpy(images.labels[start : start + BATCH]).to(device)
            adversarial = pgd(
                forward, x, labels, epsilon=radius, steps=steps, step_size=2.5 * radius / steps, generator=generator
            )
            with torch.no_grad():
                is_right = forward(x).argmax(1) == labels
                stays_right = is_right & (forward(adversarial).argmax(1) == labels)
            clean += int(is_right.sum())
            robust += int(stays_right.sum())
            on_batch()
        rows.append(
            AccuracyRow(
                beta=beta,
                n=len(images),
                clean=wilson(clean, len(images)),
                robust=wilson(robust, len(images)),
                attack=f"PGD-{steps}",
                epsilon_255=epsilon_255,
            )
        )
    return rows
