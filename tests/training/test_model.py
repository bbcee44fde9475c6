import pytest
import torch
from pydantic import ValidationError

from training.model import DualTokenViT, ViTConfig

TINY = ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, classes=3)


def test_a_row_is_classified_by_its_own_token_alone():
    torch.manual_seed(0)
    model = DualTokenViT(TINY).eval()
    images = torch.rand(4, 3, 8, 8)
    tokens = torch.randn(4, 16)
    together = model(images, tokens)
    assert together.shape == (4, 3)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], model(images[i : i + 1], tokens[i : i + 1]))
    swapped = model(images, tokens.flip(0))
    assert not torch.allclose(together, swapped)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_the_token_reaches_the_logits_with_either_pooling(pool):
    torch.manual_seed(0)
    model = DualTokenViT(TINY.model_copy(update={"pool": pool}))
    tokens = torch.randn(2, 16, requires_grad=True)
    model(torch.rand(2, 3, 8, 8), tokens).sum().backward()
    assert tokens.grad.abs().sum() > 0


def test_soups_are_the_tokens_at_the_ends():
    model = DualTokenViT(TINY)
    assert torch.equal(model.soup(0.0), model.clean_token)
    assert torch.equal(model.soup(1.0), model.robust_token)
    rows = model.soup(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(rows[1], (model.clean_token + model.robust_token) / 2)


def test_two_tokens_are_all_that_is_not_shared():
    names = dict(DualTokenViT(TINY).named_parameters())
    assert [name for name in names if "clean" in name or "robust" in name] == ["clean_token", "robust_token"]
    assert names["clean_token"].shape == (16,)


@pytest.mark.parametrize("wrong", [{"patch_size": 3}, {"heads": 3}, {"classes": 1}, {"depth": 0}, {"colour": 1}])
def test_a_shape_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError):
        ViTConfig.model_validate({**TINY.model_dump(), **wrong})
