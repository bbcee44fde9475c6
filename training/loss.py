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
    """Returns both terms of Eq. 1 for one batch: the mean cross-entropy in clean mode, and in robust mode under PGD.

    model: images and β (B,) to logits (B, K). images: float32 (B, 3, H, W) in [0, 1]. targets: int64 (B,), or float32
    (B, K), distributions over classes. epsilon: radius in units of the [0, 1] range. attack_steps: 0 for no attack.
    forward: computes the logits of the losses in place of `model`, for example `model` in a DistributedDataParallel.
    The attack always uses `model`, in eval mode, because processes do not share the gradients of an attack.

    One forward pass of 2·B rows computes both terms, each row with its own β. If α is 0 or 1, does not compute the term
    of weight 0, and returns NaN for it.
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
    """Returns Eq. 1 of the paper: α·clean + (1 − α)·robust. A loss of weight 0 may be NaN."""
    if alpha == 1:
        return clean_loss
    return robust_loss if alpha == 0 else alpha * clean_loss + (1 - alpha) * robust_loss
