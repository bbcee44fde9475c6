"""Computes the co-training loss, Eq. 1 of Rebuffi, Croce & Gowal, ICLR 2023, for each objective of the robust token.

`training.schedules` computes the radius and the learning rate of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attacks.gradient import pgd
from training.errors import ZeroGradientError
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

    The clean loss is the mean cross-entropy in clean mode. The robust loss depends on the objective of the recipe:

    - "adversarial": the mean cross-entropy in robust mode after PGD (Madry et al., ICLR 2018).
    - "trades": the mean cross-entropy in robust mode on the images, plus `trades_weight` times `trades_divergence` in
      robust mode (Zhang et al., *Theoretically principled trade-off between robustness and accuracy*, ICML 2019,
      Algorithm 1). PGD maximises this divergence instead of the cross-entropy. A deviation: PGD starts at a random
      point within the radius. The paper starts at noise of 0.001, because it makes ten steps and not one or two.

    model: maps images and β (B,) to logits (B, K) of K classes. images: float32 (B, 3, H, W) in [0, 1]. targets: labels
    int64 (B,), or distributions over the classes, float32 (B, K). epsilon: radius, for pixels in [0, 1]. attack_steps:
    steps of PGD; 0: no attack. forward: computes the logits of both losses, such as `model` in a
    DistributedDataParallel; None: `model`. The attack always uses `model`, in eval mode, because processes do not share
    the gradients of an attack.

    One forward pass computes both losses, each row at its own β: 2·B rows, or 3·B for "trades". If α is 0 or 1, one
    loss has the weight 0. The function then returns NaN in place of this loss.
    """
    forward = model if forward is None else forward
    clean_betas = images.new_full((len(images),), CLEAN_BETA)
    robust_betas = images.new_full((len(images),), ROBUST_BETA)
    nan = images.new_tensor(math.nan)
    if recipe.alpha == 1:
        return F.cross_entropy(forward(images, clean_betas).float(), targets), nan
    is_trades = recipe.objective == "trades" and attack_steps > 0  # without an attack the divergence is 0
    adversarial = images
    if attack_steps:
        was_training = model.training
        model.eval()
        attack_targets = targets
        if is_trades:  # the cross-entropy with these targets has the gradient of the divergence
            with torch.no_grad():
                attack_targets = model(images, robust_betas).float().softmax(1)
        try:
            adversarial = pgd(
                lambda x: model(x, robust_betas),
                images,
                attack_targets,
                epsilon=epsilon,
                steps=attack_steps,
                step_size=epsilon * recipe.attack_step,
                generator=generator,
            )
        except ZeroGradientError:
            if not is_trades:
                raise  # in TRADES the radius is so small that no prediction changes: the divergence is 0
        model.train(was_training)
    parts = [(adversarial, robust_betas)]
    if is_trades:
        parts.insert(0, (images, robust_betas))
    if recipe.alpha > 0:
        parts.insert(0, (images, clean_betas))
    rows, betas = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    *others, attacked = forward(rows, betas).float().chunk(len(parts))
    clean_loss = F.cross_entropy(others[0], targets) if recipe.alpha > 0 else nan
    if not is_trades:
        return clean_loss, F.cross_entropy(attacked, targets)
    divergence = trades_divergence(others[-1], attacked)
    return clean_loss, F.cross_entropy(others[-1], targets) + recipe.trades_weight * divergence


def trades_divergence(natural: Tensor, attacked: Tensor) -> Tensor:
    """Returns KL(p ‖ q), the mean over B images. p: prediction for an image. q: prediction for the attacked image.

    natural, attacked: the logits of p and of q, float32 (B, K). Both receive gradients.
    """
    return F.kl_div(attacked.log_softmax(1), natural.log_softmax(1), reduction="batchmean", log_target=True)


def combined_loss(clean_loss: Tensor, robust_loss: Tensor, alpha: float) -> Tensor:
    """Returns the co-training loss, Eq. 1: α·clean_loss + (1 − α)·robust_loss. A loss with the weight 0 may be NaN."""
    if alpha == 1:
        return clean_loss
    return robust_loss if alpha == 0 else alpha * clean_loss + (1 - alpha) * robust_loss
