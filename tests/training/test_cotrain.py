import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.attacks import pgd
from training.cotrain import Cotraining, cotraining_losses, epsilon, eq1, learning_rate, shifted
from training.data import Images
from training.errors import CheckpointError, DivergedError
from training.model import DualTokenViT
from training.recipes import load_recipe

SMALL = ["epochs=4", "batch_size=16", "model.width=16", "model.depth=1"]
CPU = torch.device("cpu")


def images(n=48):
    rng = np.random.default_rng(0)
    return Images(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, n))


def weights(training):
    return {name: tensor.clone() for name, tensor in training.average.state_dict().items()}


def test_the_losses_are_those_of_two_separate_forward_passes():
    """One pass over both halves, each row with its own token, is Eq. 1 computed the long way."""
    recipe = load_recipe("digits", SMALL)
    torch.manual_seed(0)
    model = DualTokenViT(recipe.model)
    x, y = torch.rand(8, 3, 8, 8), torch.randint(0, 10, (8,))
    clean_loss, robust_loss = cotraining_losses(
        model, x, y, recipe=recipe, epsilon=0.1, generator=torch.Generator().manual_seed(3)
    )
    adversarial = pgd(
        lambda z: model(z, model.robust_token.expand(8, -1)),
        x,
        y,
        epsilon=0.1,
        steps=recipe.attack_steps,
        step_size=0.1 * recipe.attack_step,
        generator=torch.Generator().manual_seed(3),
    )
    torch.testing.assert_close(clean_loss, F.cross_entropy(model(x, model.clean_token.expand(8, -1)), y))
    torch.testing.assert_close(robust_loss, F.cross_entropy(model(adversarial, model.robust_token.expand(8, -1)), y))
    torch.testing.assert_close(eq1(clean_loss, robust_loss, 0.25), 0.25 * clean_loss + 0.75 * robust_loss)


@pytest.mark.parametrize(("alpha", "untouched"), [(1, "robust_token"), (0, "clean_token")])
def test_at_the_ends_of_alpha_the_other_token_is_not_trained(alpha, untouched):
    recipe = load_recipe("digits", [*SMALL, f"alpha={alpha}"])
    model = DualTokenViT(recipe.model)
    losses = cotraining_losses(
        model,
        torch.rand(4, 3, 8, 8),
        torch.tensor([0, 1, 2, 3]),
        recipe=recipe,
        epsilon=0.1,
        generator=torch.Generator(),
    )
    loss = eq1(*losses, recipe.alpha)
    loss.backward()
    assert loss.isfinite()
    assert getattr(model, untouched).grad is None


def test_the_schedules():
    recipe = load_recipe("digits", ["warmup=0.2", "learning_rate=1", "epsilon_ramp=0.5", "epsilon_255=51"])
    assert [learning_rate(recipe, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [epsilon(recipe, p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert epsilon(load_recipe("digits", ["epsilon_ramp=0", "epsilon_255=51"]), 0) == pytest.approx(0.2)


def test_shifts_move_each_image_by_its_own_offset_and_pull_in_zeros():
    x = torch.zeros(64, 3, 8, 8)
    x[:, :, 4, 4] = 1
    moved = shifted(x, 1, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum((1, 2, 3)), x.sum((1, 2, 3)))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert torch.equal(shifted(x, 0, torch.Generator()), x)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others():
    def train(seed):
        training = Cotraining(load_recipe("digits", [*SMALL, "epochs=1", f"seed={seed}"]), images(), CPU)
        training.run_epoch()
        return weights(training)

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    recipe = load_recipe("digits", SMALL)
    whole = Cotraining(recipe, images(), CPU)
    while not whole.is_finished:
        whole.run_epoch()
    first = Cotraining(recipe, images(), CPU)
    first.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "state")
    second = Cotraining(recipe, images(), CPU)
    second.restore(tmp_path / "state")
    assert second.epoch == 2
    while not second.is_finished:
        second.run_epoch()
    expected, found = weights(whole), weights(second)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(tmp_path):
    training = Cotraining(load_recipe("digits", SMALL), images(), CPU)
    training.save(tmp_path / "state")
    other = Cotraining(load_recipe("digits", [*SMALL, "alpha=0.25"]), images(), CPU)
    with pytest.raises(CheckpointError, match="other settings"):
        other.restore(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        training.restore(tmp_path / "state")


def test_a_loss_that_is_not_a_number_stops_the_run():
    training = Cotraining(load_recipe("digits", SMALL), images(), CPU)
    with torch.no_grad():
        training.model.head.bias.fill_(math.nan)
    with pytest.raises((DivergedError, RuntimeError), match="lower learning_rate"):
        training.run_epoch()


def test_bf16_trains_where_the_recipe_asks_for_it():
    training = Cotraining(load_recipe("digits", [*SMALL, "precision=bf16"]), images(), CPU)
    epoch = training.run_epoch()
    assert math.isfinite(epoch.clean_loss)
    assert training.model.head.weight.dtype == torch.float32


def test_the_average_follows_the_weights():
    training = Cotraining(load_recipe("digits", [*SMALL, "ema_decay=0"]), images(), CPU)
    training.run_epoch()
    torch.testing.assert_close(training.average.head.weight, training.model.head.weight)
