"""Models and images of which one knows by arithmetic what an attack can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.datasets import Images


class MarginModel(torch.nn.Module):
    """Says 0 where the margin (B,) of images and β is positive, else 1; two more classes are out of question."""

    def __init__(self, margin: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, betas: Tensor) -> Tensor:
        margin = self.margin(images, betas)
        never = torch.full_like(margin, -20.0)
        return torch.stack([margin / 2, -margin / 2, never, never], dim=1)


def grey_margin(images: Tensor, betas: Tensor) -> Tensor:
    """How much brighter than grey an image is, on average, and a checkerboard that counts for less the larger β is.

    A grey image of level v, at a distance d = |v − 127.5| from mid-grey, is right until every pixel moves by d / reach,
    where the reach of an attack on β itself is 3 at β = 0 and 1 at β = 1; that of one on the other β is 1.
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
    """Images 8 × 8 of one grey level each, labelled as `grey_model` sees them."""

    def make(levels: Sequence[int]) -> Images:
        values = np.asarray(levels, dtype=np.uint8)
        pixels = np.broadcast_to(values[:, None, None, None], (len(values), 8, 8, 3)).copy()
        return Images(pixels, (values < 128).astype(np.int64))

    return make
