"""The models that can be co-trained, by their shape."""

from __future__ import annotations

from training.models.resnet import DualResNet, ResNetConfig
from training.models.vit import DualTokenViT, ViTConfig

ModelConfig = ViTConfig | ResNetConfig
Model = DualTokenViT | DualResNet


def build(config: ModelConfig) -> Model:
    """A model of that shape with random weights, from torch's global random state."""
    return DualTokenViT(config) if isinstance(config, ViTConfig) else DualResNet(config)
