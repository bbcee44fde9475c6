"""Detects catastrophic overfitting: the model becomes robust only against attacks with as few steps as in training.

Robust accuracy against one step then rises, and robust accuracy against many steps falls (Wong, Rice & Kolter, *Fast is
better than free*, ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from training.attacks.catalogue import ATTACKS
from training.data.datasets import Images
from training.errors import OverfittingError
from training.models.vit import images_from_pixels
from tureen.tokens import ROBUST_BETA

IMAGES = 128
STEPS = 10
MIN_FALL = 0.15  # three standard errors of a share of 128 images


@dataclass(frozen=True)
class OverfittingProbe:
    """The accuracy of the robust mode at one step of training.

    step: the training step. one_step: accuracy in [0, 1] under FGSM, an attack with one step. ten_steps: accuracy in
    [0, 1] under PGD with ten steps.
    """

    step: int
    one_step: float
    ten_steps: float


def check_overfitting(probes: Sequence[OverfittingProbe]) -> None:
    """Raises OverfittingError if catastrophic overfitting has begun. probes: in the order of training.

    Compares the last probe with the best probe, the one with the highest `ten_steps`. Overfitting has begun if:
    - the `ten_steps` of the last probe is less than half of that of the best probe
    - the `ten_steps` of the last probe is lower by more than MIN_FALL, which is three standard errors
    - the `one_step` of the last probe is higher than that of the best probe
    """
    if not probes:
        return
    best, last = max(probes, key=lambda probe: probe.ten_steps), probes[-1]
    has_fallen = best.ten_steps - last.ten_steps > MIN_FALL and last.ten_steps < best.ten_steps / 2
    if has_fallen and last.one_step > best.one_step:
        raise OverfittingError(
            f"catastrophic overfitting: from step {best.step} to {last.step} robust accuracy against one attack step "
            f"went from {100 * best.one_step:.0f} to {100 * last.one_step:.0f} %, against {STEPS} steps from "
            f"{100 * best.ten_steps:.0f} to {100 * last.ten_steps:.0f} %: raise attack_steps, lengthen epsilon_ramp or "
            "lower learning_rate, and start again"
        )


def probe_overfitting(model: nn.Module, validation: Images, *, epsilon_255: float, step: int) -> OverfittingProbe:
    """Measures the accuracy of the robust mode on up to 128 validation images, under FGSM and under PGD-10.

    epsilon_255: radius of both attacks in 1/255. step: the training step, for the result.
    """
    device = next(model.parameters()).device
    chosen = np.random.default_rng(0).permutation(len(validation))[:IMAGES]  # images of a folder are sorted by class
    images = images_from_pixels(torch.from_numpy(validation.pixels[chosen]).to(device))
    labels = torch.from_numpy(validation.labels[chosen]).to(device)
    betas = images.new_full((len(images),), ROBUST_BETA)
    was_training = model.training
    model.eval()
    shares = []
    try:
        for steps in (1, STEPS):
            adversarial = ATTACKS["fgsm" if steps == 1 else "pgd"](
                lambda x: model(x, betas),
                images,
                labels,
                epsilon=epsilon_255 / 255,
                steps=steps,
                generator=torch.Generator(device).manual_seed(0),
            )
            with torch.no_grad():
                shares.append(float((model(adversarial, betas).argmax(1) == labels).float().mean()))
    finally:
        model.train(was_training)
    return OverfittingProbe(step, *shares)
