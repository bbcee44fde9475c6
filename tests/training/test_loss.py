"""Eq. 1 against two separate forward passes."""

import torch
import torch.nn.functional as F

from training.attacks.gradient import pgd
from training.loss import combined_loss, cotraining_losses
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
