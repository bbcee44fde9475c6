"""Runs AutoAttack by the package `pyautoattack`, with the signature of the other attacks.

Restores the global state that the package changes.
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
    """Returns images after standard AutoAttack: APGD-CE, targeted APGD, targeted FAB and Square.

    Each part attacks only the images that the parts before it did not fool. Images that no part fools stay unchanged.
    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020. The arguments are those of `training.attacks.gradient`.
    steps: ignored, because the standard version sets all numbers of steps. For K < 10 classes the targeted attacks try
    K − 1 classes. generator: source of the seed. Raises RecipeError if K < 4, where targeted APGD is not defined.

    Square needs no gradient, so this function raises no ZeroGradientError. The package logs a warning of the logger
    "auto-attack" for randomness, probabilities instead of logits, zero gradients, and images that only Square breaks.
    After such a warning the result is not reliable.
    """
    images = images.contiguous()  # the package calls view() on the images and on their gradient
    with torch.no_grad():
        classes = forward(images[:1]).shape[1]
    if classes < TARGETED_DLR_CLASSES:
        raise RecipeError(
            f"AutoAttack needs {TARGETED_DLR_CLASSES} classes, the model has {classes}: attack with apgd, which then "
            "uses the plain DLR"
        )
    if not epsilon:
        return images.clone()
    seed = torch.randint(2**31, (1,), generator=generator, device=images.device)
    attack = pyautoattack.AutoAttack(
        lambda x: _ImagesOnly.apply(x, forward), eps=epsilon, seed=int(seed), device=images.device
    )
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
    # The package seeds the global random state before each part, and removes the trace function of a debugger.
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    finally:
        sys.settrace(trace)
    return adversarial.detach()


class _ImagesOnly(torch.autograd.Function):
    """Calls `forward`. Its backward pass ends at the images, so FAB does not fill the `.grad` of parameters."""

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
