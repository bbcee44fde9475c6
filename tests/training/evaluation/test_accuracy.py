import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint import load_checkpoint
from training.data.datasets import Images
from training.errors import DivergedError, RecipeError, ZeroGradientError
from training.evaluation.accuracy import (
    correct_by_beta,
    ensemble_forward,
    epsilon_grid,
    evaluate_accuracy,
    evaluate_epsilon_curve,
    make_predictor,
    sign_test,
    wilson_interval,
)
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT

LEVELS = range(28, 228)  # at distances from mid-grey of 0.5, 1.5, … 99.5, twice each


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, classes=4, pool="token")
    model = DualTokenViT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(8)  # far from linear, and its two modes far apart
    return model


@given(st.integers(1, 5000), st.data())
def test_an_interval_holds_its_share_and_stays_in_range(n, data):
    correct = data.draw(st.integers(0, n))
    accuracy = wilson_interval(correct, n)
    assert 0 <= accuracy.low <= accuracy.value == correct / n <= accuracy.high <= 1


def test_an_interval_is_wilsons():
    # Wilson's interval for 8 of 10, as published tables have it: 0.490 to 0.943.
    accuracy = wilson_interval(8, 10)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.490, 0.943), abs=5e-4)


@pytest.mark.parametrize(("gained", "lost", "p_value"), [(0, 0, 1), (5, 0, 1 / 32), (3, 1, 5 / 16), (1, 3, 15 / 16)])
def test_the_sign_test_counts_the_ways_to_differ_by_so_much(gained, lost, p_value):
    first = np.repeat([True, False, True, False], [gained, lost, 7, 9])
    second = np.repeat([False, True, True, False], [gained, lost, 7, 9])
    assert sign_test(first, second) == p_value


def test_the_sign_test_is_exact_for_many_images():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3000)) < [[0.6], [0.58]]
    gained, differing = int((first & ~second).sum()), int((first != second).sum())
    ways = sum(math.comb(differing, k) for k in range(gained, differing + 1))
    assert 0.001 < sign_test(first, second) < 0.5
    assert sign_test(first, second) == pytest.approx(ways / 2**differing, rel=1e-12)  # rounding of float64


def test_a_tenth_of_the_training_learns_the_digits_and_evaluates_by_the_recipe(checkpoint):
    assert all(
        (row.n, row.attack, row.epsilon_255) == (450, "APGD-5 (CE, targeted DLR)", 38) for row in checkpoint.accuracy
    )
    assert all(row.clean.value >= 0.9 > row.robust.value for row in checkpoint.accuracy)


@pytest.mark.slow  # the whole recipe is trained
def test_the_digits_reach_the_published_accuracy(published_digits_run):
    """The goals are 98 % clean, 58 % robust and a range of 20 points; on 450 images a seed varies by a point or two."""
    rows = {row.beta: row for row in load_checkpoint(published_digits_run).accuracy}
    assert all(
        row.n == 450 and row.attack == "APGD-20 (CE, targeted DLR)" and row.epsilon_255 == 38 for row in rows.values()
    )
    assert rows[0.0].clean.value >= 0.97
    assert rows[1.0].robust.value >= 0.56
    assert rows[1.0].robust.value - rows[0.0].robust.value >= 0.18
    assert rows[0.5].robust.value >= rows[0.0].robust.value


def test_logits_that_are_no_numbers_are_an_error_not_a_result(checkpoint):
    few = Images(checkpoint.test.pixels[:4], checkpoint.test.labels[:4])
    model = copy.deepcopy(checkpoint.model)
    model.head.bias.fill_(math.nan)
    with pytest.raises(DivergedError, match="logits of the model are not finite"):
        correct_by_beta(make_predictor(model), few, [0.0])
    with pytest.raises((DivergedError, ZeroGradientError)):
        evaluate_accuracy(model, few, betas=[0.0], epsilon_255=8, steps=1)


def test_measuring_again_gives_the_same_rows(checkpoint):
    few = Images(checkpoint.test.pixels[:60], checkpoint.test.labels[:60])
    first, again = (
        evaluate_accuracy(checkpoint.model, few, betas=[0.3, 1.0], epsilon_255=38, steps=5) for _ in range(2)
    )
    assert first == again
    assert [row.beta for row in first] == [0.3, 1.0]


def test_a_radius_of_a_half_drives_to_chance_and_zero_to_clean(checkpoint):
    """With an unlimited radius no image stays right, and with radius 0 every image does."""
    few = Images(checkpoint.test.pixels[:100], checkpoint.test.labels[:100])
    for beta in (0.0, 1.0):
        (unlimited,) = evaluate_accuracy(checkpoint.model, few, betas=[beta], epsilon_255=127.5, steps=40)
        assert unlimited.robust.value <= 0.1
        (none,) = evaluate_accuracy(checkpoint.model, few, betas=[beta], epsilon_255=0, steps=2)
        assert none.robust.value == none.clean.value


def test_more_steps_are_never_weaker_by_more_than_chance(checkpoint):
    one, many = (
        evaluate_accuracy(checkpoint.model, checkpoint.test, betas=[1.0], epsilon_255=38, steps=steps)[0]
        for steps in (1, 20)
    )
    assert many.robust.value <= one.robust.value


@pytest.mark.parametrize(
    ("attack", "label"), [("pgd", "PGD-4"), ("fgsm", "FGSM"), ("apgd", "APGD-4 (CE, targeted DLR)")]
)
def test_the_accuracy_of_every_beta_under_any_attack_is_as_calculated(grey_model, grey_images, attack, label):
    """At 10/255 images within 30 levels of mid-grey fail at β = 0, within 20 at ½, within 10 at 1; above 1 likewise,
    until the checkerboard counts again."""
    images = grey_images(LEVELS)
    rows = evaluate_accuracy(grey_model, images, betas=[0.0, 0.5, 1.0, 2.0], epsilon_255=10, steps=4, attack=attack)
    assert [row.robust.value for row in rows] == pytest.approx([0.7, 0.85, 0.9, 0.7])
    assert all(row.clean.value == 1 and row.n == 200 for row in rows)
    assert {(row.attack, row.epsilon_255) for row in rows} == {(label, 10)}


def test_an_image_that_is_wrong_anyway_is_not_robust(grey_model, grey_images):
    images = grey_images([28, 228, 100])
    images.labels[:] = 1 - images.labels
    (row,) = evaluate_accuracy(grey_model, images, betas=[1.0], epsilon_255=255, steps=4)
    assert (row.clean.value, row.robust.value) == (0, 0)


def test_the_curve_over_the_radius_is_the_closed_form_and_ends_with_nothing(grey_model, grey_images):
    """Images further from mid-grey than 3ε at β = 0, or ε at β = 1, stay right; none is further than 99.5."""
    seen = []
    curve = evaluate_epsilon_curve(
        grey_model,
        grey_images(LEVELS),
        betas=[0.0, 1.0],
        radii_255=[120, 0, 10, 20, 40, 80, 127.5],
        steps=4,
        on_batch=lambda: seen.append(1),
    )
    expected = {0: (1, 1), 10: (0.7, 0.9), 20: (0.4, 0.8), 40: (0, 0.6), 80: (0, 0.2), 120: (0, 0)}
    assert [(row.epsilon_255, row.beta) for row in curve] == [(e, b) for e in expected for b in (0, 1)]
    assert [row.robust.value for row in curve] == pytest.approx([share for pair in expected.values() for share in pair])
    assert len(seen) == len(curve)


@pytest.mark.parametrize(
    ("epsilon_255", "grid"),
    [(4, [0, 2, 4, 8, 16, 32, 127.5]), (38, [0, 19, 38, 76, 127.5]), (0, [0, 127.5]), (255, [0, 127.5])],
)
def test_the_radii_double_up_to_a_half_of_the_range(epsilon_255, grid):
    assert epsilon_grid(epsilon_255) == grid


def test_an_unknown_attack_is_named(grey_model, grey_images):
    with pytest.raises(RecipeError, match=r"no attack 'cw': choose fgsm, pgd"):
        evaluate_accuracy(grey_model, grey_images([100]), betas=[0.0], epsilon_255=8, steps=4, attack="cw")


def test_a_model_without_a_gradient_is_an_error_not_robust(margin_model, grey_images):
    model = margin_model(lambda images, betas: (images - 0.5).mean(dim=(1, 2, 3)).sign())
    with pytest.raises(ZeroGradientError):
        evaluate_accuracy(model, grey_images([100, 200]), betas=[0.0], epsilon_255=8, steps=4)


def test_an_ensemble_mixes_probabilities(vit):
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clean, robust = (vit(x, torch.full((6,), beta)).softmax(1) for beta in (0.0, 1.0))
    assert (clean - robust).abs().max() > 0.1
    torch.testing.assert_close(ensemble_forward(vit, 0.25)(x).exp(), 0.75 * clean + 0.25 * robust)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_an_ensemble_of_one_mode_is_that_mode_and_can_be_attacked(vit, beta):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = make_predictor(vit)(pixels, [beta] * 40).argmax(1)
    soup, ensemble = (
        evaluate_accuracy(vit, Images(pixels, labels), betas=[beta], epsilon_255=4, steps=5, **how)[0]
        for how in ({}, {"forward_at": ensemble_forward})
    )
    assert ensemble.clean == soup.clean
    assert 0 < soup.robust.value < 1
    # The same loss by other arithmetic: a rounding may turn a step.
    assert ensemble.robust.value == pytest.approx(soup.robust.value, abs=0.05)


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_an_ensemble_has_no_beta_beyond_its_modes(vit, beta):
    with pytest.raises(RecipeError, match="its β must be in"):
        ensemble_forward(vit, beta)


def test_predictions_are_those_of_each_beta_in_batches_too(vit):
    rng = np.random.default_rng(1)
    images = Images(rng.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, 300))
    answers = correct_by_beta(make_predictor(vit), images, [0.0, 0.5, 1.0])
    assert answers.shape == (3, 300)
    rows = evaluate_accuracy(vit, images, betas=[0.0, 0.5, 1.0], epsilon_255=0, steps=1)
    assert answers.mean(axis=1).tolist() == [row.clean.value for row in rows]
    assert len({row.clean.value for row in rows}) > 1
