"""Fixtures with models and images for which arithmetic gives the result of an attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.datasets import Images


class MarginModel(torch.nn.Module):
    """Predicts class 0 where the margin (B,) of images and β is positive, else 1, and never the other two classes."""

    def __init__(self, margin: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, betas: Tensor) -> Tensor:
        margin = self.margin(images, betas)
        never = torch.full_like(margin, -20.0)
        return torch.stack([margin / 2, -margin / 2, never, never], dim=1)


def grey_margin(images: Tensor, betas: Tensor) -> Tensor:
    """Return the mean of (image − 0.5) × weight, (B,). The weight has a checkerboard that fades from β = 0 to β = 1.

    A grey image of level v has the distance d = |v − 127.5| from mid-grey. It stays correct until every pixel moves by
    d / reach. The reach of an attack at its own β is 3 for β = 0 and 1 for β = 1; at the other β it is 1.
    """
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    checkerboard = 1.0 - 2 * ((rows + columns) % 2)
    weight = 1 + 3 * (1 - betas)[:, None, None, None] * checkerboard
    return 20 * ((images - 0.5) * weight).mean(dim=(1, 2, 3))


@pytest.fixture
def grey_model() -> MarginModel:
    return MarginModel(grey_margin)


@pytest.fixture
def margin_model() -> type[MarginModel]:
    return MarginModel


@pytest.fixture
def grey_images() -> Callable[[Sequence[int]], Images]:
    """A function that returns uniform grey 8 × 8 images with the labels that `grey_model` predicts."""

    def make(levels: Sequence[int]) -> Images:
        values = np.asarray(levels, dtype=np.uint8)
        pixels = np.broadcast_to(values[:, None, None, None], (len(values), 8, 8, 3)).copy()
        return Images(pixels, (values < 128).astype(np.int64))

    return make
