"""The linear probe of the benchmark reads the input of the classifier, and leaves the model as it was."""

import numpy as np
import torch

from benchmarks.adapt import features
from training.adapt.learning import FrozenModel
from training.data.datasets import Images
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT


def test_the_classifier_maps_the_features_to_the_logits():
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, classes=3)
    model = DualTokenViT(config).eval().requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    frozen = FrozenModel(model, Images(pixels, np.arange(9) % 3))
    expected = model(frozen.pixels(np.arange(9)), torch.zeros(9))
    torch.testing.assert_close(model.head(torch.from_numpy(features(frozen))), expected)
