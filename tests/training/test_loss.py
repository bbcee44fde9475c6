"""Eq. 1 against two separate forward passes, and TRADES against the formulas of its paper."""

import pytest
import torch
import torch.nn.functional as F

from training.attacks.gradient import pgd
from training.errors import ZeroGradientError
from training.loss import combined_loss, cotraining_losses, trades_divergence
from training.models.vit import DualTokenViT
from training.recipes import load_recipe

SMALL = ["epochs=4", "batch_size=16", "model.width=16", "model.depth=1"]


def test_the_losses_are_those_of_two_separate_forward_passes():
    """One pass over both halves, each row at its own β, equals Eq. 1 from two separate passes."""
    recipe = load_recipe("digits", SMALL)
    torch.manual_seed(0)
    model = DualTokenViT(recipe.model)
    x, y = torch.rand(8, 3, 8, 8), torch.randint(0, 10, (8,))
    clean_loss, robust_loss = cotraining_losses(
        model, x, y, recipe=recipe, epsilon=0.1, attack_steps=3, generator=torch.Generator().manual_seed(3)
    )
    adversarial = pgd(
        lambda z: model(z, torch.ones(8)),
        x,
        y,
        epsilon=0.1,
        steps=3,
        step_size=0.1 * recipe.attack_step,
        generator=torch.Generator().manual_seed(3),
    )
    torch.testing.assert_close(clean_loss, F.cross_entropy(model(x, torch.zeros(8)), y))
    torch.testing.assert_close(robust_loss, F.cross_entropy(model(adversarial, torch.ones(8)), y))
    torch.testing.assert_close(combined_loss(clean_loss, robust_loss, 0.25), 0.25 * clean_loss + 0.75 * robust_loss)


def test_the_attack_uses_the_model_and_the_loss_uses_the_wrapper():
    """DistributedDataParallel sees only the pass whose gradients it must exchange."""
    recipe = load_recipe("digits", SMALL)
    model = DualTokenViT(recipe.model).train()
    rows, attacked_in = [], []

    def wrapped(images, betas):
        rows.append(len(images))
        return model(images, betas)

    model.register_forward_pre_hook(lambda module, _: attacked_in.append(module.training))
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    how = {"recipe": recipe, "epsilon": 0.1, "generator": torch.Generator(), "forward": wrapped}
    cotraining_losses(model, x, y, attack_steps=2, **how)
    assert rows == [8]
    assert attacked_in == [False, False, True]


def test_without_attack_steps_both_modes_train_on_the_same_images():
    recipe = load_recipe("digits", SMALL)
    model = DualTokenViT(recipe.model).train()
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    losses = cotraining_losses(model, x, y, recipe=recipe, epsilon=0, attack_steps=0, generator=torch.Generator())
    expected = [F.cross_entropy(model(x, torch.full((4,), beta)), y) for beta in (0.0, 1.0)]
    torch.testing.assert_close(list(losses), expected)


def trades_images(model, x, *, epsilon, steps, step_size, generator):
    """The inner maximisation of Zhang et al., ICML 2019, Algorithm 1, in robust mode, from a random start."""
    ones = torch.ones(len(x))
    noise = torch.rand(x.shape, generator=generator)
    point = (x + epsilon * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        point.requires_grad_(True)
        divergence = F.kl_div(model(point, ones).log_softmax(1), model(x, ones).softmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, point)
        point = (point.detach() + step_size * gradient.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return point


@pytest.mark.parametrize("alpha", [0.5, 0])
def test_the_losses_and_gradients_of_trades_are_those_of_its_paper(alpha):
    recipe = load_recipe("digits", [*SMALL, "objective=trades", "trades_weight=6", f"alpha={alpha}"])
    torch.manual_seed(0)
    model = DualTokenViT(recipe.model)
    x, y = torch.rand(8, 3, 8, 8), torch.randint(0, 10, (8,))
    clean_loss, robust_loss = cotraining_losses(
        model, x, y, recipe=recipe, epsilon=0.1, attack_steps=3, generator=torch.Generator().manual_seed(3)
    )
    adversarial = trades_images(
        model, x, epsilon=0.1, steps=3, step_size=0.1 * recipe.attack_step, generator=torch.Generator().manual_seed(3)
    )
    natural, attacked = model(x, torch.ones(8)), model(adversarial, torch.ones(8))
    divergence = F.kl_div(attacked.log_softmax(1), natural.softmax(1), reduction="sum") / 8
    assert divergence > 1e-4
    expected_robust = F.cross_entropy(natural, y) + 6 * divergence
    torch.testing.assert_close(robust_loss, expected_robust)
    expected = expected_robust
    if alpha:
        expected_clean = F.cross_entropy(model(x, torch.zeros(8)), y)
        torch.testing.assert_close(clean_loss, expected_clean)
        expected = alpha * expected_clean + (1 - alpha) * expected_robust
    else:
        assert clean_loss.isnan()
    weights = [weight for name, weight in model.named_parameters() if alpha or name != "clean_token"]
    found = torch.autograd.grad(combined_loss(clean_loss, robust_loss, alpha), weights)
    for ours, theirs in zip(found, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # fp32 sums in another order


def test_the_gradient_of_the_divergence_is_that_of_its_formula():
    """For the logits of p it is p · (ln p − ln q − KL), for those of q it is q − p; each divided by B."""
    torch.manual_seed(0)
    natural, attacked = ((2 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_() for _ in range(2))
    p, q = natural.softmax(1), attacked.softmax(1)
    kl = (p * (p.log() - q.log())).sum(1, keepdim=True)
    divergence = trades_divergence(natural, attacked)
    torch.testing.assert_close(divergence, kl.mean())
    for_natural, for_attacked = torch.autograd.grad(divergence, [natural, attacked])
    torch.testing.assert_close(for_natural, p * (p.log() - q.log() - kl) / 5)
    torch.testing.assert_close(for_attacked, (q - p) / 5)
    assert torch.autograd.gradcheck(trades_divergence, (natural, attacked))


def test_without_attack_steps_trades_is_the_cross_entropy():
    torch.manual_seed(0)
    model = DualTokenViT(load_recipe("digits", SMALL).model)
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    how = {"epsilon": 0, "attack_steps": 0, "generator": torch.Generator()}
    trades, adversarial = (
        cotraining_losses(model, x, y, recipe=load_recipe("digits", [*SMALL, f"objective={name}"]), **how)
        for name in ("trades", "adversarial")
    )
    torch.testing.assert_close(trades, adversarial)


class SameForAllImages(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images, betas):
        return self.logits + 0 * images.sum(dim=(1, 2, 3))[:, None]


def test_a_prediction_that_no_image_changes_ends_adversarial_training_and_has_no_divergence():
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    model = SameForAllImages().train()
    how = {"epsilon": 0.1, "attack_steps": 1, "generator": torch.Generator()}
    losses = cotraining_losses(model, x, y, recipe=load_recipe("digits", ["objective=trades"]), **how)
    torch.testing.assert_close(losses, (F.cross_entropy(model(x, None), y),) * 2)
    assert model.training
    adversarial = load_recipe("digits", ["objective=adversarial"])
    with pytest.raises(ZeroGradientError):
        cotraining_losses(model, x, y, recipe=adversarial, **how)
