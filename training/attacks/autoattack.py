"""AutoAttack as an evaluation calls it, by the package `pyautoattack`.

Knows what that package does to its surroundings, and undoes it; the attack itself is the package's.
"""

from __future__ import annotations

import sys
from typing import Any

import pyautoattack
import torch
from torch import Tensor

from training.attacks.gradient import TARGETED_DLR_CLASSES, TARGETS, Forward
from training.errors import RecipeError


def autoattack(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The standard version of AutoAttack: APGD-CE, targeted APGD, targeted FAB and Square, in turn on what is left.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020. The words are those of `training.attacks.gradient`; images that nothing
    fooled come back as they are.
    steps: ignored, the version sets all numbers; with K < 10 classes the targeted attacks try K − 1. generator: gives
    the seed. Raises RecipeError where K < 4: targeted APGD is not defined there.

    Square needs no gradient, so this raises no ZeroGradientError. What the package suspects of a model (randomness,
    probabilities for logits, zero gradients, Square finding what the others miss) it logs as warnings of the logger
    "auto-attack"; such a warning is a reason to distrust the result.
    """
    images = images.contiguous()  # the package calls view on the images and on their gradient
    with torch.no_grad():
        classes = forward(images[:1]).shape[1]
    if classes < TARGETED_DLR_CLASSES:
        raise RecipeError(
            f"AutoAttack needs {TARGETED_DLR_CLASSES} classes, the model has {classes}: attack with apgd, which then "
            "takes the plain DLR"
        )
    if not epsilon:
        return images.clone()
    seed = torch.randint(2**31, (1,), generator=generator, device=images.device)
    attack = pyautoattack.AutoAttack(
        lambda x: _ImagesOnly.apply(x, forward), eps=epsilon, seed=int(seed), device=images.device
    )
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
    # It seeds the global random state before each part, and takes the debugger's or coverage's trace function away.
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    finally:
        sys.settrace(trace)
    return adversarial.detach()


class _ImagesOnly(torch.autograd.Function):
    """`forward` to float32 logits, its backward pass ending at the images: FAB's would fill every parameter's .grad."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, forward: Forward) -> Tensor:
        ctx.images = images.detach().requires_grad_(images.requires_grad)
        with torch.set_grad_enabled(images.requires_grad):
            ctx.logits = forward(ctx.images).float()
        return ctx.logits.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = torch.autograd.grad(ctx.logits, ctx.images, gradients)
        return gradient.contiguous(), None
