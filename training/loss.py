"""Computes the co-training loss, Eq. 1 of Rebuffi, Croce & Gowal, ICLR 2023.

`training.schedules` computes the radius and the learning rate of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attacks.gradient import pgd
from training.recipes import Recipe
from tureen.tokens import CLEAN_BETA, ROBUST_BETA


def cotraining_losses(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    recipe: Recipe,
    epsilon: float,
    attack_steps: int,
    generator: torch.Generator,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the clean loss and the robust loss of a batch of B images, the two terms of Eq. 1.

    The clean loss is the mean cross-entropy in clean mode. The robust loss is that in robust mode, after PGD.

    model: maps images and β (B,) to logits (B, K) of K classes. images: float32 (B, 3, H, W) in [0, 1]. targets: labels
    int64 (B,), or distributions over the classes, float32 (B, K). epsilon: radius, for pixels in [0, 1]. attack_steps:
    steps of PGD; 0: no attack. forward: computes the logits of both losses, such as `model` in a
    DistributedDataParallel; None: `model`. The attack always uses `model`, in eval mode, because processes do not share
    the gradients of an attack.

    One forward pass of 2·B rows computes both losses, each row at its own β. If α is 0 or 1, one loss has the weight 0.
    The function then returns NaN in place of this loss.
    """
    forward = model if forward is None else forward
    clean_betas = images.new_full((len(images),), CLEAN_BETA)
    robust_betas = images.new_full((len(images),), ROBUST_BETA)
    nan = images.new_tensor(math.nan)
    if recipe.alpha == 1:
        return F.cross_entropy(forward(images, clean_betas).float(), targets), nan
    adversarial = images
    if attack_steps:
        was_training = model.training
        model.eval()
        adversarial = pgd(
            lambda x: model(x, robust_betas),
            images,
            targets,
            epsilon=epsilon,
            steps=attack_steps,
            step_size=epsilon * recipe.attack_step,
            generator=generator,
        )
        model.train(was_training)
    if recipe.alpha == 0:
        return nan, F.cross_entropy(forward(adversarial, robust_betas).float(), targets)
    logits = forward(torch.cat([images, adversarial]), torch.cat([clean_betas, robust_betas])).float()
    clean_logits, robust_logits = logits.chunk(2)
    return F.cross_entropy(clean_logits, targets), F.cross_entropy(robust_logits, targets)


def combined_loss(clean_loss: Tensor, robust_loss: Tensor, alpha: float) -> Tensor:
    """Returns the co-training loss, Eq. 1: α·clean_loss + (1 − α)·robust_loss. A loss with the weight 0 may be NaN."""
    if alpha == 1:
        return clean_loss
    return robust_loss if alpha == 0 else alpha * clean_loss + (1 - alpha) * robust_loss
