"""A configuration gives the model of its kind and shape."""

import pytest
import torch

from training.models.registry import build_model
from training.models.resnet import DualResNet
from training.models.shapes import ResNetConfig, ViTConfig
from training.models.vit import DualTokenViT

VIT = ViTConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, classes=3)
RESNET = ResNetConfig(depth=18, image_size=16, classes=3, stem="small", width=4)


@pytest.mark.parametrize(("config", "kind"), [(VIT, DualTokenViT), (RESNET, DualResNet)])
def test_a_configuration_gives_its_kind_of_model_with_its_classes(config, kind):
    model = build_model(config).eval()
    assert type(model) is kind
    assert model.config == config
    assert model(torch.rand(2, 3, 16, 16), torch.tensor([0.0, 1.0])).shape == (2, 3)


@pytest.mark.parametrize("config", [VIT, RESNET])
def test_the_weights_depend_on_the_random_state_of_torch_alone(config):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([parameter.flatten() for parameter in build_model(config).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
