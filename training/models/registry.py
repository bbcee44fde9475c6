"""Builds the models that can be co-trained, from their configurations."""

from __future__ import annotations

from training.models.resnet import DualResNet
from training.models.shapes import ModelConfig, ViTConfig
from training.models.vit import DualTokenViT

Model = DualTokenViT | DualResNet


def build_model(config: ModelConfig) -> Model:
    """Returns a new model of the shape in `config`. Its weights are random, from the global random state of torch."""
    return DualTokenViT(config) if isinstance(config, ViTConfig) else DualResNet(config)
