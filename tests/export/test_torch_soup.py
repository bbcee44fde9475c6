"""The soups of a checkpoint and of a bundle in PyTorch: their logits, their gradients, and AutoAttack on them."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import tureen
from export.errors import ExportError
from export.graph import onnx_graph
from export.torch_soup import load_torch, model_of_bundle
from tests.randomised import randomised
from training.attacks.apgd import apgd
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT, images_from_pixels
from tureen.bundle.bundle import MANIFEST, load_bundle
from tureen.bundle.examples import EXAMPLES


@pytest.mark.parametrize(
    "option", [{"registers": 4, "pre_norm": True, "mlp": "swiglu"}, {"qk_norm": True, "mlp": "quick_gelu"}], ids=str
)
def test_the_model_of_a_graph_with_an_option_of_third_party_models_has_the_weights_of_the_original(option):
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=4, width=48, depth=2, heads=3, classes=5, **option)
    original = randomised(DualTokenViT(config)).requires_grad_(False)
    bundle = SimpleNamespace(
        graph=onnx_graph(original),
        tokens={"clean": original.clean_token.numpy(), "robust": original.robust_token.numpy()},
        manifest=SimpleNamespace(provenance={"model": config.model_dump()}),
        path="bundle",
    )
    torch.testing.assert_close(model_of_bundle(bundle).state_dict(), original.state_dict(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", ["digits_run", "bundle_path", EXAMPLES / "cifar10"])
def test_the_modules_give_the_golden_logits_of_the_bundle(request, path, bundle_path):
    path = request.getfixturevalue(path) if isinstance(path, str) else path
    golden = load_bundle(EXAMPLES / "cifar10" if path == EXAMPLES / "cifar10" else bundle_path).golden
    soup = tureen.load_torch(path)
    x = images_from_pixels(torch.from_numpy(golden.pixels))
    for beta, logits in zip(golden.betas, golden.logits, strict=True):
        module = soup.at(float(beta))
        assert isinstance(module, torch.nn.Module)
        torch.testing.assert_close(module(x), torch.from_numpy(logits), rtol=1e-4, atol=1e-4)  # fp32, another kernel


def test_an_attack_on_a_module_changes_its_labels(held_out, digits_run):
    module = load_torch(digits_run).at(0.0)
    x, y = images_from_pixels(torch.from_numpy(held_out.pixels[:20])), torch.from_numpy(held_out.labels[:20])
    attacked = apgd(module, x, y, epsilon=38 / 255, steps=5)
    assert (module(attacked).argmax(1) == y).sum() < (module(x).argmax(1) == y).sum()
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_module_is_in_eval_mode_so_that_an_attack_restores_no_other(digits_run):
    soup = load_torch(digits_run)
    module = soup.at(0.5)
    assert not module.training
    module.train(module.training)  # as packages of attacks do at their end
    assert not soup.model.training


@pytest.mark.parametrize("beta", [math.nan, math.inf, "robust"])
def test_a_beta_that_is_no_number_is_refused(digits_run, beta):
    with pytest.raises(ValueError, match="β must be a finite number"):
        load_torch(digits_run).at(beta)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 1, 8, 8),
        torch.rand(2, 3, 9, 8),
        torch.rand(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_images_of_another_shape_or_type_are_refused(digits_run, images):
    with pytest.raises(ValueError, match=r"images must be float \(B, 3, 8, 8\) in \[0, 1\], not torch"):
        load_torch(digits_run).at(0.5)(images)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({}, "does not give the shape of the model"),
        ({"model": {"width": 7}}, "does not give the shape of the model"),
        ({"recipe": "imagenet-b16"}, "another model than its manifest says"),
    ],
)
def test_a_bundle_whose_shape_is_unknown_is_refused(own_bundle, provenance, message):
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    (own_bundle / MANIFEST).write_text(json.dumps({**manifest, "provenance": provenance}))
    with pytest.raises(ExportError, match=message):
        load_torch(own_bundle)
