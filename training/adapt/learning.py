"""Learns one token for given images by Adam. All other weights of the model are frozen.

Knows nothing about β, folds or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.attacks.catalogue import find_attack
from training.attacks.gradient import Forward
from training.data.datasets import Images
from training.errors import DivergedError
from training.evaluation.accuracy import BATCH, NOT_FINITE, is_correct, model_device
from training.models.vit import DualTokenViT, images_from_pixels

LEARNING_BATCH = 32
STEPS_BETWEEN_CHECKPOINTS = 5
LEARNING_ATTACK = "pgd"
LEARNING_ATTACK_STEPS = 2

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LearningSettings:
    """All values that determine a learned token, except the images and the model.

    steps: maximum number of steps. learning_rate: of Adam. seed: not negative. epsilon_255: radius under l∞ of the
    attack in each step, in 1/255; 0 means no attack.
    """

    steps: int
    learning_rate: float
    seed: int
    epsilon_255: float = 0.0

    @property
    def checkpoints(self) -> list[int]:
        """The numbers of steps after which a token may be taken: 0, 5, 10 and so on, and `steps`."""
        return sorted({*range(0, self.steps, STEPS_BETWEEN_CHECKPOINTS), self.steps})

    def generator(self, stream: int) -> np.random.Generator:
        """Returns a source of random numbers. Each stream, a number from 0, has its own."""
        return np.random.default_rng([self.seed, stream])


class Score(NamedTuple):
    """The number of images that are classified correctly, and the sum of the cross-entropy over all images."""

    right: int
    loss: float


class FrozenModel:
    """A model with frozen weights on n labelled images, as a function of the token. Rows are indices of the images."""

    def __init__(self, model: DualTokenViT, images: Images) -> None:
        """model: in eval mode, without gradients. Embeds the patches of all images once."""
        self.device = model_device(model)
        self.images = images
        self.model = model
        self._labels = torch.from_numpy(images.labels).to(self.device)
        with torch.no_grad():
            parts = [self._embed(self.pixels(rows)) for rows in _parts(np.arange(len(images)))]
        self._patches = torch.cat(parts)

    def pixels(self, rows: Rows) -> Tensor:
        """Returns the images of the rows, float32 (B, 3, H, W) in [0, 1]."""
        return images_from_pixels(torch.from_numpy(self.images.pixels[rows]).to(self.device))

    def loss(self, rows: Rows, token: Tensor, settings: LearningSettings, generator: torch.Generator) -> Tensor:
        """Returns the mean cross-entropy of the images of the rows at the token (D,), a number with a gradient.

        With `settings.epsilon_255`, each image is attacked first, for this token. generator: of the attack. Raises
        DivergedError if the logits are not finite.
        """
        return F.cross_entropy(self._logits(rows, token, settings, generator), self._labels[rows])

    @torch.no_grad()
    def score(self, rows: Rows, token: Tensor, settings: LearningSettings, stream: int) -> Score:
        """Returns how well the token (D,) classifies the images of the rows. The attack is that of `loss`."""
        generator = torch.Generator(self.device).manual_seed(int(settings.generator(stream).integers(2**62)))
        right, loss = 0, 0.0
        for part in _parts(rows):
            logits, labels = self._logits(part, token, settings, generator), self._labels[part]
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        return Score(right, loss)

    @torch.no_grad()
    def correct(self, rows: Rows, token: Tensor) -> NDArray[np.bool_]:
        """Returns whether each image of the rows is classified correctly at the token (D,), bool (B,). Attacks none.

        Raises DivergedError if logits are not finite.
        """
        forward = token_forward(self.model, token)
        correct = [is_correct(forward, self.pixels(part), self._labels[part]) for part in _parts(rows)]
        return np.concatenate(correct)

    def subset(self, rows: Rows) -> Images:
        """Returns the images of the rows."""
        return Images(self.images.pixels[rows], self.images.labels[rows])

    def _logits(self, rows: Rows, token: Tensor, settings: LearningSettings, generator: torch.Generator) -> Tensor:
        patches = self._patches[rows]
        if settings.epsilon_255:
            attacked = find_attack(LEARNING_ATTACK)(
                token_forward(self.model, token.detach()),
                self.pixels(rows),
                self._labels[rows],
                epsilon=settings.epsilon_255 / 255,
                steps=LEARNING_ATTACK_STEPS,
                generator=generator,
            )
            with torch.no_grad():
                patches = self._embed(attacked)
        logits: Tensor = self.model.with_patches(patches, token.expand(len(rows), -1)).float()
        if not logits.isfinite().all():
            raise DivergedError(f"{NOT_FINITE}, or --learning-rate is too high")
        return logits

    def _embed(self, x: Tensor) -> Tensor:
        return self.model.patch_embed((x - self.model.mean) / self.model.std)


def token_forward(model: DualTokenViT, token: Tensor) -> Forward:
    """Returns the model at one token (D,), as a function from images (B, 3, H, W) to logits (B, K)."""
    return lambda x: model.with_tokens(x, token.expand(len(x), -1))


def learn_token(
    frozen: FrozenModel, rows: Rows, start: Tensor, settings: LearningSettings, *, stream: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields each checkpoint of the learning: the number of steps so far, and the token (D,). The first is `start`.

    rows: the images to learn from. Each step takes at most LEARNING_BATCH of them at random. stream: number of the
    random numbers. On a CPU the same arguments and the same number of threads give the same bits. Raises DivergedError
    if the loss is not finite.
    """
    rng = settings.generator(stream)
    generator = torch.Generator(frozen.device).manual_seed(int(rng.integers(2**62)))
    token = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([token], lr=settings.learning_rate)
    checkpoints = set(settings.checkpoints)
    for step in range(settings.steps + 1):
        if step in checkpoints:
            yield step, token.detach().clone()
        if step < settings.steps:
            batch = rng.choice(rows, min(LEARNING_BATCH, len(rows)), replace=False)
            optimizer.zero_grad()
            frozen.loss(batch, token, settings, generator).backward()
            optimizer.step()


def _parts(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]
