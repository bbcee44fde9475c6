"""Computes the logits that every engine must reproduce: those of PyTorch in fp32, on clean and on attacked images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import Backbone
from training.attacks.catalogue import ATTACKS
from training.attacks.names import attack_label
from training.data.datasets import Images
from training.evaluation.accuracy import forward_at_beta, model_device
from training.models.vit import DualTokenViT, images_from_pixels, pixels_from_images
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix_rows

BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 64
ATTACK = "apgd-margin"  # its images are far from the boundary, so that they fool another precision too

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ReferenceLogits:
    """For each of T β, n images and their PyTorch logits at this β. Attacked images are different ones at each β."""

    pixels: NDArray[np.uint8]  # (T, n, H, W, 3)
    logits: NDArray[np.float32]  # (T, n, K)


@dataclass(frozen=True)
class AttackedReference:
    """The images after an attack on the PyTorch model at each β, with their logits and true labels.

    attack: name and number of steps. epsilon_255: radius under l∞, in 1/255 of the pixel range.
    """

    sample: ReferenceLogits  # the attacked images, and their logits
    labels: NDArray[np.int64]  # (n,), true labels
    attack: str
    epsilon_255: float


@dataclass(frozen=True)
class Reference:
    """The images with the logits that an engine must reproduce, and the two tokens of the model."""

    betas: tuple[float, ...]  # T values
    images: ReferenceLogits
    clean_token: NDArray[np.float32]  # (D,)
    robust_token: NDArray[np.float32]  # (D,)
    attacked: AttackedReference | None = None  # None: engines are compared on clean images only


def compute_reference(model: DualTokenViT, pixels: NDArray[np.uint8], betas: Sequence[float] = BETAS) -> Reference:
    """Returns `pixels`, uint8 (n, H, W, 3), with their PyTorch logits at each β, and the tokens of the model."""
    clean, robust = (model.soup(beta).numpy(force=True) for beta in (CLEAN_BETA, ROBUST_BETA))
    repeated = np.broadcast_to(pixels, (len(betas), *pixels.shape))
    images = ReferenceLogits(repeated, _logits(model, repeated, betas))
    return Reference(tuple(betas), images, clean, robust)


def attack_images(
    model: DualTokenViT,
    images: Images,
    *,
    epsilon_255: float,
    steps: int,
    betas: Sequence[float] = BETAS,
    on_images: Progress = lambda count: None,
) -> AttackedReference:
    """Returns the images after the attack `apgd_margin` on the PyTorch model at each β, with their PyTorch logits.

    Rounds attacked images to uint8, the input type of an engine. epsilon_255: radius in 1/255 of the pixel range.
    on_images: called with the number of images attacked since the last call; the total is betas × images.
    """
    labels = images.labels
    adversarial = np.empty((len(betas), *images.pixels.shape), np.uint8)
    for t, beta in enumerate(betas):
        for start in range(0, len(labels), BATCH):
            part = slice(start, min(start + BATCH, len(labels)))
            adversarial[t, part] = _adversarial(
                model, images.pixels[part], labels[part], beta=beta, epsilon_255=epsilon_255, steps=steps
            )
            on_images(part.stop - part.start)
    sample = ReferenceLogits(adversarial, _logits(model.cpu(), adversarial, betas))
    return AttackedReference(sample, labels, attack_label(ATTACK, steps), epsilon_255)


def _adversarial(
    model: DualTokenViT,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    beta: float,
    epsilon_255: float,
    steps: int,
) -> NDArray[np.uint8]:
    """Returns the pixels, uint8 (B, H, W, 3), after the attack `apgd_margin` on the model at `beta`.

    epsilon_255: radius in 1/255. If it is not a whole number, rounding can exceed the radius by up to 0.5/255.
    """
    device = model_device(model)
    found = ATTACKS[ATTACK](
        forward_at_beta(model, beta),
        images_from_pixels(torch.from_numpy(pixels).to(device)),
        torch.from_numpy(labels).to(device),
        epsilon=epsilon_255 / 255,
        steps=steps,
        generator=torch.Generator(device).manual_seed(0),
    )
    return pixels_from_images(found)


@torch.no_grad()
def _logits(model: DualTokenViT, pixels: NDArray[np.uint8], betas: Sequence[float]) -> NDArray[np.float32]:
    """Returns the logits, float32 (T, n, K), of pixels (T, n, H, W, 3). Entry t has the logits at betas[t]."""
    backbone = Backbone(model).eval()
    clean, robust = (model.soup(beta).numpy(force=True) for beta in (CLEAN_BETA, ROBUST_BETA))
    rows = []
    for beta, images in zip(betas, pixels, strict=True):
        token = torch.from_numpy(mix_rows(clean, robust, [beta]))
        parts = (torch.from_numpy(images[start : start + BATCH].copy()) for start in range(0, len(images), BATCH))
        rows.append(torch.cat([backbone(part, token.expand(len(part), -1)) for part in parts]).numpy())
    return np.stack(rows)
