import pytest
import torch
from pydantic import ValidationError

from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT

TINY = ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, classes=3)


def test_a_row_is_classified_only_by_its_token():
    torch.manual_seed(0)
    model = DualTokenViT(TINY).eval()
    images = torch.rand(4, 3, 8, 8)
    tokens = torch.randn(4, 16)
    together = model.with_tokens(images, tokens)
    assert together.shape == (4, 3)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], model.with_tokens(images[i : i + 1], tokens[i : i + 1]))
    swapped = model.with_tokens(images, tokens.flip(0))
    assert not torch.allclose(together, swapped)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_the_token_reaches_the_logits_with_either_pooling(pool):
    torch.manual_seed(0)
    model = DualTokenViT(TINY.model_copy(update={"pool": pool}))
    tokens = torch.randn(2, 16, requires_grad=True)
    model.with_tokens(torch.rand(2, 3, 8, 8), tokens).sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_registers_take_part_in_attention_and_not_in_the_mean(pool):
    torch.manual_seed(0)
    model = DualTokenViT(TINY.model_copy(update={"registers": 3, "pool": pool}))
    images, betas = torch.rand(2, 3, 8, 8), torch.zeros(2)
    before = model(images, betas)
    with torch.no_grad():
        model.registers.add_(torch.randn(3, 16))
    assert not torch.allclose(model(images, betas), before)
    for block in model.blocks:  # without attention and MLP the patches keep their values, and registers reach nothing
        for parameter in (*block.proj.parameters(), *block.fc2.parameters()):
            torch.nn.init.zeros_(parameter)
    unmixed = model(images, betas)
    with torch.no_grad():
        model.registers.add_(torch.randn(3, 16))
    assert torch.equal(model(images, betas), unmixed)


@pytest.mark.parametrize(
    "option", [{"pre_norm": True}, {"mlp": "quick_gelu"}, {"mlp": "swiglu"}, {"qk_norm": True}], ids=str
)
def test_a_model_with_an_option_of_another_architecture_trains_in_bfloat16(option):
    model = DualTokenViT(TINY.model_copy(update=option))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.rand(2, 3, 8, 8), torch.tensor([0.0, 1.0])).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_without_registers_has_no_tensor_for_them():
    assert "registers" not in DualTokenViT(TINY).state_dict()


def test_soups_are_the_tokens_at_the_ends():
    model = DualTokenViT(TINY)
    assert torch.equal(model.soup(0.0), model.clean_token)
    assert torch.equal(model.soup(1.0), model.robust_token)
    rows = model.soup(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(rows[1], (model.clean_token + model.robust_token) / 2)


def test_a_row_is_classified_at_its_beta():
    torch.manual_seed(0)
    model = DualTokenViT(TINY)
    images, betas = torch.rand(3, 3, 8, 8), torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(model(images, betas), model.with_tokens(images, model.soup(betas)))


@pytest.mark.parametrize(
    ("adapter", "own"),
    [("token", 16), ("norm", 5 * 2 * 16), ("both", 5 * 2 * 16 + 16), ("none", 0)],
)
def test_the_modes_differ_only_in_the_adapter(adapter, own):
    torch.manual_seed(0)
    model = DualTokenViT(TINY.model_copy(update={"adapter": adapter}))
    assert model.adapter_parameters == own
    shared = DualTokenViT(TINY.model_copy(update={"adapter": "none"}))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in shared.parameters()) + own
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    images = torch.rand(2, 3, 8, 8)
    clean, half, robust = (model(images, torch.full((2,), beta)) for beta in (0.0, 0.5, 1.0))
    mixed = model(images, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed, torch.stack([clean[0], robust[1]]))
    assert torch.allclose(clean, robust) == (adapter == "none")
    assert torch.allclose(clean, half) == (adapter == "none")


def test_a_token_is_a_49th_of_the_dual_norms_in_a_vit_b16():
    """The introduction of the paper: tokens have "49 times fewer" parameters than dual normalisation layers."""
    with torch.device("meta"):
        config = ViTConfig(image_size=224, patch_size=16, width=768, depth=12, heads=12, classes=1000, adapter="both")
        model = DualTokenViT(config)
    token, norms = 768, model.adapter_parameters - 768
    assert (norms - token) / token == 49


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_either_stem_makes_the_same_number_of_patches(stem, patch_size):
    config = TINY.model_copy(update={"stem": stem, "patch_size": patch_size})
    assert DualTokenViT(config)(torch.rand(2, 3, 8, 8), torch.zeros(2)).shape == (2, 3)


def test_two_tokens_are_all_that_is_not_shared():
    names = dict(DualTokenViT(TINY).named_parameters())
    assert [name for name in names if "clean" in name or "robust" in name] == ["clean_token", "robust_token"]
    assert names["clean_token"].shape == (16,)


@pytest.mark.parametrize(
    "wrong",
    [{"patch_size": 3}, {"heads": 3}, {"classes": 1}, {"patch_size": 1, "stem": "conv"}, {"depth": 0}, {"colour": 1}],
)
def test_a_shape_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError):
        ViTConfig.model_validate({**TINY.model_dump(), **wrong})
