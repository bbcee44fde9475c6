"""A tiny ViT with random weights, and noisy images of three colours that it classifies partly."""

import numpy as np
import pytest
import torch

from training.adapt.learning import FrozenModel, LearningSettings
from training.data.datasets import Images
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT

CLASSES = 3


@pytest.fixture(scope="session")
def coloured():
    """15 images of three classes, 8 × 8."""
    rng = np.random.default_rng(0)
    labels = np.arange(15) % CLASSES
    colours = np.array([(180, 60, 60), (60, 180, 60), (60, 60, 180)])
    pixels = colours[labels][:, None, None, :] + rng.integers(-60, 60, (15, 8, 8, 3))
    return Images(pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64))


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, classes=CLASSES, pool="token")
    model = DualTokenViT(config)
    for block in model.blocks:  # so that the patches reach the token
        torch.nn.init.normal_(block.qkv.weight, std=0.3)
        torch.nn.init.normal_(block.proj.weight, std=0.3)
        torch.nn.init.normal_(block.fc1.weight, std=0.3)
        torch.nn.init.normal_(block.fc2.weight, std=0.3)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture
def frozen(model, coloured):
    return FrozenModel(model, coloured)


@pytest.fixture
def settings():
    return LearningSettings(steps=12, learning_rate=0.05, seed=3)
