"""Runs AutoAttack and its parts by the package `pyautoattack`, in functions with the arguments of the other attacks.

`pyautoattack` changes torch's random state and Python's trace function. This module restores both after each attack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyautoattack
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from training.attacks.apgd import TARGETED_DLR_CLASSES, TARGETS
from training.attacks.gradient import Forward
from training.errors import RecipeError
from tureen.bundle.manifest import Norm

NAME_IN_PACKAGE: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def autoattack(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None = None,
    norm: Norm = "linf",
    parts: tuple[str, ...] | None = None,
) -> Tensor:
    """Returns images after standard AutoAttack, which has four parts: APGD-CE, targeted APGD, targeted FAB and Square.

    Each part attacks only the images that the model still classifies correctly after the earlier parts. An image on
    which no part succeeds stays unchanged.
    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020; for l1 their *Mind the box*, ICML 2021. The module `training.attacks.gradient` describes the
    arguments, except that epsilon is here the radius in `norm`.
    parts: some of the four parts, such as ("apgd-ce", "apgd-t"), each with `steps` steps; None: all four, with their
    standard numbers of steps. generator: source of the seed. A targeted attack tries 9 wrong classes, or all of them if
    there are fewer. Raises RecipeError for fewer than 4 classes, because targeted APGD is not defined for them.

    Raises no ZeroGradientError, because Square needs no gradient. The logger "auto-attack" of `pyautoattack` warns of
    four faults: random logits, probabilities in place of logits, zero gradients, and images on which only Square
    succeeds. After such a warning the result is not reliable.
    """
    images = images.contiguous()  # pyautoattack calls view() on the images and on their gradient
    with torch.no_grad():
        classes = forward(images[:1]).shape[1]
    if classes < TARGETED_DLR_CLASSES:
        raise RecipeError(
            f"AutoAttack needs {TARGETED_DLR_CLASSES} classes, the model has {classes}: attack with apgd, which then "
            "uses the plain DLR"
        )
    if not epsilon:
        return images.clone()
    attack = pyautoattack.AutoAttack(
        lambda x: _ImagesOnly.apply(x, forward),
        eps=epsilon,
        norm=NAME_IN_PACKAGE[norm],
        seed=_seed(images, generator),
        device=images.device,
    )
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
    if parts is not None:
        attack.attacks_to_run = list(parts)
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = steps
    with _unchanged_global_state(images):
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return adversarial.detach()


def square(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns images after the Square attack under l∞, which uses no gradient.

    The attack adds random squares to an image. It keeps a square if the logit of the true class then leads the other
    logits by less. As in the paper, the squares shrink to their final size over all `steps` steps. The Square part of
    AutoAttack differs: it plans to shrink them over 10,000 steps, but stops after 5,000.
    Source: Andriushchenko et al., *Square attack: a query-efficient black-box adversarial attack via random search*,
    ECCV 2020. The module `training.attacks.gradient` describes the arguments. steps: maximum number of queries for each
    image.
    """
    images = images.contiguous()
    if not epsilon:
        return images.clone()
    attack = SquareAttack(
        lambda x: forward(x).float().clone(),  # pyautoattack writes into the logits
        eps=epsilon,
        n_queries=steps,
        seed=_seed(images, generator),
        resc_schedule=True,
        device=images.device,
    )
    with torch.no_grad(), _unchanged_global_state(images):
        adversarial: Tensor = attack.perturb(images, labels)
    return adversarial.detach()


def _seed(images: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.randint(2**31, (1,), generator=generator, device=images.device))


@contextmanager
def _unchanged_global_state(images: Tensor) -> Iterator[None]:
    """Restores the random state of torch and the trace function of Python at the end of the `with` block.

    A debugger sets the trace function. images: if they are on a GPU, the random state of this GPU is restored too.
    """
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            yield
    finally:
        sys.settrace(trace)


class _ImagesOnly(torch.autograd.Function):
    """An autograd function that calls `forward`, and computes gradients with respect to the images only.

    Without it, the attack FAB would also fill the `.grad` of the model's parameters.
    """

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
