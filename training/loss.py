"""What co-training minimises: Eq. 1 of the paper on one batch; and the schedules of radius and learning rate."""

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
    generator: torch.Generator,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The two expectations of Eq. 1 on one batch: mean cross-entropy in clean mode, and in robust mode under attack.

    model: images and β (B,) to logits (B, K). images: float32 (B, 3, H, W) in [0, 1]. targets: int64 (B,), or float32
    (B, K), distributions over classes. epsilon: radius in the range of the images. forward: what the losses are
    computed with where that is not the model itself but, say, DistributedDataParallel around it; the attack always
    goes through `model`, in eval mode, since its gradients are nobody else's.
    Both halves go through the model in one forward pass of 2·B rows, each row with its own β; the attack is PGD on the
    robust mode. Where α is 0 or 1 the half without weight is not computed, and its loss is NaN.
    """
    forward = model if forward is None else forward
    clean_betas = images.new_full((len(images),), CLEAN_BETA)
    robust_betas = images.new_full((len(images),), ROBUST_BETA)
    nan = images.new_tensor(math.nan)
    if recipe.alpha == 1:
        return F.cross_entropy(forward(images, clean_betas).float(), targets), nan
    was_training = model.training
    model.eval()
    adversarial = pgd(
        lambda x: model(x, robust_betas),
        images,
        targets,
        epsilon=epsilon,
        steps=recipe.attack_steps,
        step_size=epsilon * recipe.attack_step,
        generator=generator,
    )
    model.train(was_training)
    if recipe.alpha == 0:
        return nan, F.cross_entropy(forward(adversarial, robust_betas).float(), targets)
    logits = forward(torch.cat([images, adversarial]), torch.cat([clean_betas, robust_betas])).float()
    clean_logits, robust_logits = logits.chunk(2)
    return F.cross_entropy(clean_logits, targets), F.cross_entropy(robust_logits, targets)


def eq1(clean_loss: Tensor, robust_loss: Tensor, alpha: float) -> Tensor:
    """Eq. 1 of the paper: α·clean + (1 − α)·robust, where a loss without weight may be NaN."""
    if alpha == 1:
        return clean_loss
    return robust_loss if alpha == 0 else alpha * clean_loss + (1 - alpha) * robust_loss


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at a share of training in [0, 1]: linear warm-up, then a half cosine to zero."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def epsilon(recipe: Recipe, progress: float) -> float:
    """The radius at a share of training in [0, 1], in the range [0, 1] of the images: a linear ramp, then constant."""
    ramp = min(1.0, progress / recipe.epsilon_ramp) if recipe.epsilon_ramp else 1.0
    return recipe.epsilon_255 / 255 * ramp
