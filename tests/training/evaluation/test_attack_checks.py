"""Each check fails on a model that is built to fail it."""

import numpy as np
import pytest
import torch

from training.attacks.catalogue import max_gradients
from training.errors import ZeroGradientError
from training.evaluation.accuracy import attack_each_beta, wilson_interval
from training.evaluation.attack_checks import (
    CHECKS_AT_A_MODE,
    CHECKS_AT_EACH_BETA,
    check_attack,
    check_epsilon_curve,
    max_check_gradients,
)
from tureen.bundle.manifest import AccuracyRow

LEVELS = range(28, 228)
APGD, SQUARE = "APGD is never stronger", "an attack without gradients is never stronger"
TWICE_WEAKER, TWICE_STRONGER = "twice the steps are never weaker", "twice the steps are hardly stronger"
SINGLE = "a single step is never stronger"
HALF, VANISHED = "a radius of a half leaves chance at most", "gradients vanish for few images"


def checked(model, images, *, epsilon_255=32, steps=8, betas=(0.0,), attack="pgd", on_check=lambda: None):
    how = {"epsilon_255": epsilon_255, "steps": steps, "attack": attack}
    outcomes = attack_each_beta(model, images, betas=betas, **how)
    return check_attack(model, images, outcomes=outcomes, on_check=on_check, **how)


def failed(*arguments, **how):
    return {check.name for check in checked(*arguments, **how) if not check.has_passed}


def test_an_honest_model_passes_every_check_at_every_beta(grey_model, grey_images):
    seen = []
    checks = checked(
        grey_model,
        grey_images(LEVELS),
        epsilon_255=10,
        steps=4,
        betas=(0.0, 0.5, 1.0),
        on_check=lambda: seen.append(1),
    )
    each, at_a_mode = [APGD, SQUARE], [TWICE_WEAKER, TWICE_STRONGER, SINGLE, HALF, VANISHED]
    expected = [(beta, name) for beta in (0, 0.5, 1) for name in each + (at_a_mode if beta != 0.5 else [])]
    assert [(check.beta, check.name) for check in checks] == expected
    assert all(check.has_passed and check.n == (200 if check.name == APGD else 128) for check in checks)
    assert len(seen) == len(checks) == 3 * CHECKS_AT_EACH_BETA + 2 * CHECKS_AT_A_MODE
    figures = {check.name: check.figures for check in checks[: CHECKS_AT_EACH_BETA + CHECKS_AT_A_MODE]}
    assert figures[TWICE_WEAKER]["PGD-4"] == figures[TWICE_WEAKER]["PGD-8"]
    assert figures[APGD]["PGD-4"] == figures[APGD]["with APGD-40 (CE, targeted DLR)"] == 0.7
    assert figures[SINGLE]["PGD-4"] == figures[SINGLE]["with FGSM"]
    assert figures[HALF] == {"PGD-4, ε 127.5/255": 0, "chance": 0.25}
    assert figures[SQUARE]["with Square-200"] == figures[SQUARE]["PGD-4"]


def test_the_same_images_are_checked_again_and_not_the_first_alone(grey_model, grey_images):
    """The images of a folder are sorted by class, so the first ones are all of one class."""
    images = grey_images(sorted(list(LEVELS) * 2))
    first, again = (checked(grey_model, images, epsilon_255=10, steps=2, betas=(1.0,)) for _ in range(2))
    assert first == again
    robust = next(check.figures["PGD-2"] for check in first if check.name == SINGLE)
    assert robust == pytest.approx(0.9, abs=0.08)  # the first 128 are all robust


def test_gradients_that_mislead_are_found_out_by_random_search_and_by_a_radius_of_a_half(margin_model, grey_images):
    def misleading(images, betas):
        margin = 20 * (images - 0.5).mean(dim=(1, 2, 3))
        return 2 * margin.detach() - margin

    assert failed(margin_model(misleading), grey_images([127, 128] * 64)) == {APGD, SQUARE, HALF}
    assert SQUARE in failed(
        margin_model(misleading), grey_images([127, 128] * 64), betas=(0.5,), attack="apgd", steps=2
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_pgd_on_scaled_logits_is_found_out_by_other_losses(margin_model, grey_images, beta):
    """At this scale the cross-entropy of bright images is exactly zero, so PGD leaves them at a random point."""

    def scaled(images, betas):
        brightness = (images - 0.5).mean(dim=(1, 2, 3))
        return torch.where(brightness > 0.1, 2000.0, 20.0) * brightness

    images = grey_images([100] * 64 + [158] * 64)
    assert APGD in failed(margin_model(scaled), images, epsilon_255=36, betas=(beta,))
    assert failed(margin_model(scaled), images, epsilon_255=36, betas=(beta,), attack="apgd") == set()


def test_a_table_by_a_weak_attack_is_found_out_at_its_own_figures(grey_model, grey_images):
    """The figures that are checked are those that were measured: here PGD with a quarter of the radius."""
    images = grey_images(LEVELS)
    weak = attack_each_beta(grey_model, images, betas=(0.5,), epsilon_255=10, steps=4, attack="pgd")
    checks = check_attack(grey_model, images, outcomes=weak, epsilon_255=40, steps=4, attack="pgd")
    assert {check.name for check in checks if not check.has_passed} == {APGD, SQUARE}
    shares = {check.name: check.figures["PGD-4"] for check in checks}
    assert shares == {APGD: weak[0.5].robust.mean(), SQUARE: chosen_robust(weak[0.5].robust).mean()}


def chosen_robust(robust):
    return robust[np.random.default_rng(0).permutation(len(robust))[:128]]


def trapped(images, betas):
    """From grey to white, u = 0 to 1 at 8/255, the margin dips at 0.2, recovers until 0.45, then becomes negative."""
    u = (images - 128 / 255).mean(dim=(1, 2, 3)) / (8 / 255)
    dip = torch.where(u < 0.2, 1 - 2.5 * u, 0.5 + 2 * (u - 0.2))
    return torch.where(u < 0.45, dip, 1 - 3.6 * (u - 0.45))


def test_small_steps_that_are_caught_in_a_dip_are_found_out_by_large_ones(margin_model, grey_images):
    model, images = margin_model(trapped), grey_images([128] * 128)
    assert failed(model, images, epsilon_255=8, steps=4) - {APGD} == {TWICE_WEAKER}
    assert failed(model, images, epsilon_255=8, steps=8) == {APGD, SINGLE}


def planted(images, betas):
    """The error is a small region inside the ball of radius 8/255 about mid-grey, so small steps alone reach it."""
    inside = 128 / 255 + 8 / 255 * (torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5)
    return 100 * ((images - inside).abs().mean(dim=(1, 2, 3)) - 0.15 * 8 / 255)


def test_an_attack_that_has_not_converged_is_found_out_by_more_steps(margin_model, grey_images):
    model, images = margin_model(planted), grey_images([128] * 128)
    assert TWICE_STRONGER in failed(model, images, epsilon_255=8, steps=5)
    assert TWICE_STRONGER not in failed(model, images, epsilon_255=8, steps=40)


def test_images_without_a_gradient_are_counted(margin_model, grey_images):
    def saturated_where_bright(images, betas):
        brightness = (images - 0.5).mean(dim=(1, 2, 3))
        return torch.where(brightness > 0.3, 1e5, 20.0) * brightness

    model, levels = margin_model(saturated_where_bright), [90] * 100 + [250] * 2
    assert failed(model, grey_images(levels), epsilon_255=38) == {VANISHED}
    assert failed(model, grey_images(levels[:100]), epsilon_255=38) == set()
    with pytest.raises(ZeroGradientError):
        failed(model, grey_images([250] * 4))


def test_a_comparison_without_any_gradient_passes(margin_model, grey_images):
    """APGD attacks the DLR, and FGSM has only the cross-entropy, which is saturated."""
    model = margin_model(lambda images, betas: 1e5 * (images - 0.5).mean(dim=(1, 2, 3)))
    assert failed(model, grey_images([90] * 16), epsilon_255=38, attack="apgd") == set()


def test_checks_that_an_attack_does_not_allow_are_left_out(grey_model, grey_images):
    images = grey_images(LEVELS[::10])
    fgsm = checked(grey_model, images, epsilon_255=10, steps=4, attack="fgsm", betas=[1.0])
    assert [check.name for check in fgsm] == [APGD, SQUARE, HALF, VANISHED]
    apgd = checked(grey_model, images, epsilon_255=10, steps=20, attack="apgd", betas=[1.0, 0.5])
    assert [check.name for check in apgd] == [SQUARE, TWICE_WEAKER, TWICE_STRONGER, SINGLE, HALF, SQUARE]


@pytest.mark.parametrize(("norm", "radius_255"), [("linf", 8.0), ("l2", 40.0)])
def test_apgd_with_too_few_steps_is_found_out_at_every_beta(margin_model, grey_images, norm, radius_255):
    """The l2 ball of this radius holds the error too."""
    model, images = margin_model(planted), grey_images([128] * 128)
    how = {"epsilon_255": radius_255, "steps": 1, "attack": "apgd", "norm": norm}
    outcomes = attack_each_beta(model, images, betas=(0.5,), **how)
    checks = check_attack(model, images, outcomes=outcomes, **how)
    assert APGD in {check.name for check in checks if not check.has_passed}
    assert {check.norm for check in checks} == {norm}
    assert len(checks) == (2 if norm == "linf" else 1)


def row(beta, epsilon_255, right):
    share = wilson_interval(right, 100)
    return AccuracyRow(beta=beta, n=100, clean=share, robust=share, attack="PGD-4", epsilon_255=epsilon_255)


def test_a_curve_that_rises_with_the_radius_is_found_out():
    curve = [
        row(beta, epsilon, right)
        for beta, shares in {0.0: (90, 50, 52), 1.0: (90, 40, 70)}.items()
        for epsilon, right in zip((0, 4, 8), shares, strict=True)
    ]
    falls, rises = check_epsilon_curve(curve)
    assert (falls.beta, falls.has_passed) == (0, True)
    assert (rises.beta, rises.has_passed) == (1, False)
    assert rises.figures == {"ε 0/255": 0.9, "ε 4/255": 0.4, "ε 8/255": 0.7}


@pytest.mark.parametrize(
    ("attack", "steps"), [("pgd", 8), ("apgd", 8), ("apgd", 20), ("apgd-ce", 30), ("fgsm", 1), ("mi-fgsm", 4)]
)
def test_attack_and_checks_compute_no_more_gradients_than_their_maximum(grey_model, grey_images, attack, steps):
    """The radius is so small that the attack breaks almost no image, which is the longest case."""
    images, betas, epsilon_255 = grey_images(LEVELS), (0.0, 0.5, 1.0), 0.1
    passes = {True: 0, False: 0}
    model = CountingModel(grey_model, passes)
    how = {"epsilon_255": epsilon_255, "steps": steps, "attack": attack}
    outcomes = attack_each_beta(model, images, betas=betas, **how)
    most = len(images) * len(betas) * max_gradients(attack, steps, classes=4)
    assert 0.4 * most < passes[True] <= most
    passes[True] = passes[False] = 0
    check_attack(model, images, outcomes=outcomes, **how)
    most = max_check_gradients(len(images), betas, attack=attack, steps=steps, classes=4)
    # Passes that only read labels are not counted: a few for each attack, beside hundreds.
    assert 0.4 * most < passes[True] + passes[False] / 3 < 1.1 * most


class CountingModel(torch.nn.Module):
    """The model `model`, which counts the images of its passes, with and without a gradient."""

    def __init__(self, model, passes):
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, images, betas):
        self.passes[images.requires_grad and torch.is_grad_enabled()] += len(images)
        return self.model(images, betas)


def test_the_number_of_gradients_is_unknown_for_an_attack_without_gradient_steps():
    assert max_check_gradients(10, (0.0,), attack="autoattack", steps=40, classes=10) is None
