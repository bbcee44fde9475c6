"""The normalisation layers of a ResNet separate the parameters that the config names, and share all others."""

import importlib
import itertools
import re
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from training.errors import RecipeError
from training.loss import cotraining_losses
from training.models.resnet import BLOCKS, DualBatchNorm, DualGroupNorm, DualResNet
from training.models.shapes import ResNetConfig
from training.recipes import DIGITS

TINY = ResNetConfig(depth=18, image_size=8, classes=3, stem="small", width=4)
VARIANTS = [
    ("batch", "shared"),
    ("batch", "dual"),
    ("batch", "dual_params"),
    ("layer", "shared"),
    ("layer", "dual"),
    ("group", "shared"),
    ("group", "dual"),
]
SEPARATE = [variant for variant in VARIANTS if variant[1] != "shared"]
BOTH_MODES = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])


def tiny(norm="batch", adapter="dual", **changes):
    """Return a small model with random norms, so that the two modes differ, also in their statistics."""
    torch.manual_seed(0)
    model = DualResNet(ResNetConfig.model_validate({**TINY.model_dump(), "norm": norm, "adapter": adapter, **changes}))
    return unsettled(model)


def unsettled(model):
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point() and tensor.ndim <= 2:  # no convolution, and neither mean nor std
                tensor.add_(0.3 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (50, 25_557_032)])
def test_the_parameters_are_as_many_as_published(depth, published):
    model = DualResNet(ResNetConfig(depth=depth, image_size=224, classes=1000, adapter="shared"))
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert model.adapter_parameters == 0


@pytest.mark.parametrize(("norm", "adapter"), SEPARATE)
def test_a_mode_has_the_scales_and_offsets_of_a_separate_shared_model(norm, adapter):
    model, shared = tiny(norm, adapter), tiny(norm, "shared")
    norms = [m for m in shared.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert model.adapter_parameters == sum(m.weight.numel() + m.bias.numel() for m in norms) > 0
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in shared.parameters())
    assert extra == model.adapter_parameters


@pytest.fixture(scope="module")
def torchvision_models():
    """Return the classifiers of torchvision, which need none of its compiled operators."""
    try:
        return importlib.import_module("torchvision.models")
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:  # at import it describes operators that are not there: declare them, and start again
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float limit) -> Tensor")
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        return importlib.import_module("torchvision.models")


@pytest.mark.parametrize("depth", [18, 50])
def test_logits_are_those_of_torchvision_with_the_same_weights(torchvision_models, depth):
    torch.manual_seed(0)
    theirs = unsettled(getattr(torchvision_models, f"resnet{depth}")(num_classes=5)).eval()
    ours = DualResNet(ResNetConfig(depth=depth, image_size=64, classes=5, adapter="shared")).eval()
    ours.load_state_dict({our_name(name, depth): tensor for name, tensor in theirs.state_dict().items()})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs((images - 0.5) / 0.5)
        torch.testing.assert_close(ours(images, torch.tensor([0.0, 1.0])), expected)
    assert (expected[0] - expected[1]).abs().max() > 0.01  # else equal logits would say nothing


def our_name(name, depth):
    """Return the name in DualResNet of a tensor of the ResNet of torchvision."""

    def block(match):
        return f"blocks.{sum(BLOCKS[depth][: int(match[1]) - 1]) + int(match[2])}."

    if not name.startswith("layer"):
        return name.replace("conv1", "stem_conv").replace("bn1", "stem_norm").replace("fc", "head")
    name = re.sub(r"layer(\d)\.(\d)\.", block, name)
    name = name.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.norm")
    name = re.sub(r"conv(\d)", lambda match: f"convs.{int(match[1]) - 1}", name)
    return re.sub(r"bn(\d)", lambda match: f"norms.{int(match[1]) - 1}", name)


@pytest.mark.parametrize(("adapter", "is_separate"), [("dual", True), ("dual_params", False), ("shared", False)])
def test_in_training_only_dual_batch_norm_keeps_a_clean_row_apart_from_adversarial_ones(adapter, is_separate):
    model = tiny("batch", adapter).train()
    images = torch.rand(6, 3, 8, 8)
    changed = images.clone()
    changed[BOTH_MODES == 1] = torch.rand(3, 3, 8, 8) ** 3
    clean = BOTH_MODES == 0
    before, after = model(images, BOTH_MODES)[clean], model(changed, BOTH_MODES)[clean]
    assert torch.equal(before, after) == is_separate


def test_dual_batch_norm_is_one_batch_norm_for_each_mode():
    torch.manual_seed(0)
    dual = unsettled(DualBatchNorm(5, statistics=2))
    singles = [nn.BatchNorm2d(5), nn.BatchNorm2d(5)]
    for mode, single in enumerate(singles):
        single.load_state_dict(
            {name: tensor[mode] for name, tensor in dual.state_dict().items()}
            | {"num_batches_tracked": single.num_batches_tracked}
        )
    betas = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])  # in no order
    for step in range(3):
        x = torch.randn(5, 5, 3, 3) + step
        out = dual(x, betas)
        for mode, single in enumerate(singles):
            torch.testing.assert_close(out[betas == mode], single(x[betas == mode]))
    dual.eval()
    for mode, single in enumerate(singles):
        torch.testing.assert_close(dual.running_mean[mode], single.running_mean)
        torch.testing.assert_close(dual.running_var[mode], single.running_var)
        torch.testing.assert_close(dual(x, torch.full((5,), float(mode))), single.eval()(x))


def test_dual_params_batch_norm_has_one_set_of_statistics_of_all_rows():
    norm = DualBatchNorm(5, statistics=1)
    x = torch.randn(4, 5, 3, 3)
    out = norm(x, torch.tensor([0.0, 1.0, 0.5, 0.2]))  # in training too, every β is welcome
    reference = nn.BatchNorm2d(5)
    torch.testing.assert_close(out, reference(x))
    assert norm.running_mean.shape == norm.running_var.shape == (1, 5)
    torch.testing.assert_close(norm.running_mean[0], reference.running_mean)
    torch.testing.assert_close(norm.running_var[0], reference.running_var)


def test_a_mode_without_rows_keeps_its_statistics():
    norm = unsettled(DualBatchNorm(5, statistics=2))
    before = norm.running_mean.clone()
    out = norm(torch.randn(4, 5, 3, 3), torch.ones(4))
    assert torch.isfinite(out).all()
    assert torch.equal(norm.running_mean[0], before[0])
    assert not torch.equal(norm.running_mean[1], before[1])


def test_dual_batch_norm_refuses_to_be_trained_between_the_modes():
    model = tiny("batch", "dual").train()
    with pytest.raises(RecipeError, match="β = 0 and β = 1"):
        model(torch.rand(2, 3, 8, 8), torch.tensor([0.0, 0.5]))
    assert model.eval()(torch.rand(2, 3, 8, 8), torch.tensor([0.0, 0.5])).shape == (2, 3)


@pytest.mark.parametrize(
    "norm",
    [DualBatchNorm(6, statistics=2), DualBatchNorm(6, statistics=1), DualGroupNorm(3, 6)],
    ids=["dual batch", "dual_params batch", "dual group"],
)
def test_half_way_is_the_mean_of_both_modes(norm):
    torch.manual_seed(0)
    norm = unsettled(norm).eval()
    x = torch.randn(2, 6, 3, 3)
    clean, half, robust = (norm(x, torch.full((2,), beta)) for beta in (0.0, 0.5, 1.0))
    assert not torch.allclose(clean, robust, atol=0.01)
    torch.testing.assert_close(half, (clean + robust) / 2)


@pytest.mark.parametrize(("norm", "adapter"), VARIANTS)
def test_in_eval_mode_rows_are_independent(norm, adapter):
    model = tiny(norm, adapter).eval()
    images, betas = torch.rand(3, 3, 8, 8), torch.tensor([0.0, 0.3, 1.0])
    with torch.no_grad():
        together = model(images, betas)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], model(images[i : i + 1], betas[i : i + 1]))
        assert torch.allclose(together, model(images, 1 - betas), atol=1e-4) == (adapter == "shared")


@pytest.mark.parametrize(("norm", "adapter"), VARIANTS)
def test_co_training_reaches_every_parameter_of_both_modes(norm, adapter):
    model = tiny(norm, adapter)
    losses = cotraining_losses(
        model,
        torch.rand(4, 3, 8, 8),
        torch.tensor([0, 1, 2, 0]),
        recipe=DIGITS,
        epsilon=0.1,
        attack_steps=2,
        generator=torch.Generator().manual_seed(0),
    )
    sum(losses).backward()
    for name, parameter in model.named_parameters():
        # Each mode's row; only convolutions before a norm of one group see gradients that are zero in places.
        rows = parameter.grad if "norm" in name and adapter != "shared" else parameter.grad[None]
        assert all(row.abs().max() > 0 for row in rows), name


@pytest.mark.parametrize("width", [2, 6, 16, 64, 128])
@pytest.mark.parametrize("depth", [18, 50])
def test_the_groups_divide_the_channels(width, depth):
    config = ResNetConfig(depth=depth, image_size=32, classes=3, stem="small", width=width, norm="group")
    norms = [m for m in DualResNet(config).modules() if isinstance(m, DualGroupNorm)]
    assert len(norms) == {18: 20, 50: 53}[depth]
    for norm in norms:
        channels = norm.weight.shape[1]
        assert channels % norm.groups == 0
        assert channels // norm.groups > 1  # of one channel alone, a GroupNorm keeps no more than its shape
    assert {norm.groups for norm in norms} == {32} or width < 64


def test_layer_norm_is_over_channels_and_positions():
    x = torch.randn(2, 8, 3, 3)
    model = tiny("layer", "shared", width=8)
    with torch.no_grad():
        model.stem_norm.weight.fill_(1)
        model.stem_norm.bias.zero_()
    expected = nn.functional.layer_norm(x, x.shape[1:])
    torch.testing.assert_close(model.stem_norm(x, torch.zeros(2)), expected)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_the_stem_decides_the_resolution_of_the_blocks(stem):
    model = tiny(stem=stem)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(tuple(arguments[0].shape)))
    model.eval()(torch.rand(1, 3, 64, 64), torch.zeros(1))
    assert seen == [(1, 4, 64, 64) if stem == "small" else (1, 4, 16, 16)]


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_dual_params_is_refused_without_statistics(norm):
    with pytest.raises(ValidationError, match="use dual"):
        ResNetConfig.model_validate({**TINY.model_dump(), "norm": norm, "adapter": "dual_params"})


@pytest.mark.parametrize("wrong", [{"depth": 34}, {"width": 3}, {"classes": 1}, {"norm": "instance"}, {"colour": 1}])
def test_a_shape_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError):
        ResNetConfig.model_validate({**TINY.model_dump(), **wrong})
