"""Attacks find planted adversarial examples, and raise an error where they cannot work."""

from functools import partial

import pytest
import torch

from tests.training.attacks.attacked_models import (
    EPSILON,
    GRADIENT,
    ITERATIVE,
    LARGE,
    four_classes,
    network,
    run,
    seeded,
    share_right,
    sure_images,
)
from training.attacks.apgd import apgd
from training.attacks.catalogue import ATTACKS
from training.attacks.gradient import fgsm, has_zero_gradient, mi_fgsm, pgd
from training.errors import ZeroGradientError

every_attack = pytest.mark.parametrize("name", ATTACKS)
every_attack_with_a_gradient = pytest.mark.parametrize("name", [*GRADIENT, "autoattack"])


@every_attack_with_a_gradient
def test_the_strongest_point_of_a_linear_model_is_found(name):
    """The optimum of a linear model is known: every pixel moves by ε against its weight. Nothing less fools it."""
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    reach = EPSILON * weight.abs().sum()

    def forward(x):
        return four_classes(((x - 0.5) * weight).flatten(1).sum(1) + 0.98 * reach)

    images, labels = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    assert share_right(forward, images, labels) == 1
    assert share_right(forward, run(name, forward, images, labels), labels) == 0


@pytest.mark.parametrize(
    "attack",
    [
        fgsm,
        partial(pgd, steps=10, step_size=EPSILON / 4),
        partial(mi_fgsm, steps=10),
        partial(apgd, steps=10),
        partial(apgd, steps=2, until_fooled=False),
        partial(apgd, steps=10, loss="dlr-targeted"),
    ],
)
def test_a_robust_linear_model_is_attacked_to_its_worst_point(attack):
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))

    def forward(x):
        return four_classes(((x - 0.5) * weight).flatten(1).sum(1) + 1.5 * EPSILON * weight.abs().sum())

    images = torch.full((4, 3, 8, 8), 0.5)
    adversarial = attack(forward, images, torch.zeros(4, dtype=torch.int64), epsilon=EPSILON)
    torch.testing.assert_close(adversarial, images - EPSILON * weight.sign())


@every_attack_with_a_gradient
def test_a_planted_adversarial_example_is_found(name):
    """The model is right except around one corner of the ε-ball, with a slope that leads there."""
    images = torch.full((1, 3, 8, 8), 0.5)
    corner = images + EPSILON * (seeded((1, 3, 8, 8)) - 0.5).sign()

    def forward(x):
        return four_classes((x - corner).flatten(1).norm(dim=1) - 0.01)

    labels = torch.tensor([0])
    assert share_right(forward, images, labels) == 1
    assert share_right(forward, run(name, forward, images, labels, steps=40), labels) == 0


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "apgd", "autoattack"])
def test_an_adversarial_example_planted_inside_the_ball_is_found(name):
    """No single step reaches the example; steps must turn back."""
    images = torch.full((1, 3, 8, 8), 0.5)
    inside = images + EPSILON * (2 * seeded((1, 3, 8, 8)) - 1)

    def forward(x):
        return four_classes((x - inside).flatten(1).norm(dim=1) - 0.03)

    labels = torch.tensor([0])
    assert share_right(forward, run("fgsm", forward, images, labels), labels) == 1
    assert share_right(forward, run(name, forward, images, labels, steps=100), labels) == 0


@every_attack_with_a_gradient
def test_an_adversarial_example_planted_in_a_network_is_found(name):
    """A linear readout of network features that fails only for points as extreme as the planted one.

    Source: Zimmermann et al., *Increasing confidence in adversarial robustness evaluations*, NeurIPS 2022.
    """
    torch.manual_seed(0)
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh())
    image = seeded((1, 3, 8, 8)) * 0.8 + 0.1
    planted = image + EPSILON * (seeded((1, 3, 8, 8), seed=2) - 0.5).sign()
    with torch.no_grad():
        inner = features(image + EPSILON * (2 * seeded((500, 3, 8, 8), seed=3) - 1))
        away = features(planted) - inner.mean(0)
        readout = torch.linalg.solve(inner.T.cov() + 1e-4 * torch.eye(32), away[0])

    def forward(x):
        return four_classes(10 * ((away - features(x) + inner.mean(0)) @ readout / (away @ readout) + 0.02))

    assert (forward(image + EPSILON * (2 * seeded((500, 3, 8, 8), seed=4) - 1)).argmax(1) == 0).all()
    labels = torch.tensor([0])
    assert share_right(forward, run(name, forward, image, labels), labels) == 0


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi-fgsm", "apgd-ce"])
def test_a_saturated_softmax_is_an_error_for_attacks_on_the_cross_entropy(name):
    forward = network(scale=1e4)
    images, labels = sure_images(forward, 16)
    assert has_zero_gradient(forward, images, labels).all()
    with pytest.raises(ZeroGradientError):
        run(name, forward, images, labels)


def rounded(forward):
    """Return the model with a quantised input: piecewise constant, so its gradient is zero everywhere."""
    return lambda x: forward((4 * x).round() / 4)


@pytest.mark.parametrize("name", GRADIENT)
def test_rounding_inside_a_model_is_an_error_not_robustness(name):
    forward = rounded(network())
    images, labels = sure_images(forward, 16)
    with pytest.raises(ZeroGradientError):
        run(name, forward, images, labels)


@pytest.mark.parametrize("name", GRADIENT)
def test_one_image_without_a_gradient_does_not_stop_the_attack_on_another(name):
    forward = network()

    def rounded_where_bright(x):
        is_bright = (x.flatten(1).mean(1) > 0.5)[:, None, None, None]
        return forward(torch.where(is_bright, x.round(), x))

    dark_and_bright = torch.stack([0.3 * seeded((3, 8, 8)), 1 - 0.3 * seeded((3, 8, 8))])
    labels = forward(dark_and_bright).argmax(1)
    labels[1] = rounded_where_bright(dark_and_bright).argmax(1)[1]
    adversarial = run(name, rounded_where_bright, dark_and_bright, labels, epsilon=0.1)
    assert (rounded_where_bright(adversarial).argmax(1) == labels).tolist() == [False, True]


def test_square_breaks_a_model_without_a_gradient():
    forward = rounded(network())
    images, labels = sure_images(forward, 4)
    assert share_right(forward, run("square", forward, images, labels, epsilon=LARGE, steps=3000), labels) == 0


def test_autoattack_includes_square():
    forward = rounded(network())
    images, labels = sure_images(forward, 1)
    assert share_right(forward, run("autoattack", forward, images, labels, epsilon=LARGE), labels) == 0


@every_attack
def test_the_result_stays_within_epsilon_and_the_range(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    images[:4] = images[:4].round()
    before = images.clone()
    adversarial = run(name, forward, images, forward(images).argmax(1), epsilon=LARGE)
    assert torch.equal(images, before)
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert EPSILON < (adversarial - images).abs().max() <= LARGE + 1e-6


@every_attack
def test_a_radius_of_zero_gives_the_images_back(name):
    forward = network()
    images = seeded((4, 3, 8, 8))
    adversarial = run(name, forward, images, forward(images).argmax(1), epsilon=0.0)
    assert torch.equal(adversarial, images)
    assert adversarial is not images


@every_attack
def test_a_radius_of_a_half_leaves_no_accuracy(name):
    """Chance is 20 %, but the labels are predictions of the model, so a working attack leaves 0 %."""
    forward = network()
    images = seeded((16, 3, 8, 8))
    labels = forward(images).argmax(1)
    assert share_right(forward, run(name, forward, images, labels, epsilon=0.5), labels) == 0


@pytest.mark.parametrize("name", ITERATIVE)
def test_more_steps_are_never_weaker_and_a_single_one_never_stronger(name):
    """Up to one image of 200, which is the effect of a random start."""
    forward = network()
    images = seeded((200, 3, 8, 8))
    labels = forward(images).argmax(1)

    def share(name, steps):
        return share_right(forward, run(name, forward, images, labels, epsilon=0.015, steps=steps), labels)

    once = share("fgsm", 1)
    shares = [share(name, steps) for steps in (1, 5, 40)]
    assert 0.2 < shares[-1] < 0.8
    assert shares[1] <= shares[0] + 0.005
    assert shares[2] <= shares[1] + 0.005
    assert shares[2] < once


@every_attack
def test_only_the_images_get_gradients(name):
    layer = torch.nn.Linear(192, 5)
    images = seeded((8, 3, 8, 8))

    def forward(x):
        return layer(x.flatten(1))

    run(name, forward, images, forward(images).argmax(1), epsilon=LARGE)
    assert layer.weight.grad is None
    assert images.grad is None


@every_attack
def test_the_seed_repeats_the_result_and_the_global_random_state_stays(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    labels = forward(images).argmax(1)
    state = torch.get_rng_state()
    first = run(name, forward, images, labels, epsilon=LARGE)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(run(name, forward, images, labels, epsilon=LARGE), first)
    other = run(name, forward, images, labels, epsilon=LARGE, seed=1)
    assert torch.equal(other, first) == (name in ("fgsm", "mi-fgsm"))


@every_attack_with_a_gradient
def test_logits_in_half_precision_will_do(name):
    forward = network()
    images = seeded((4, 3, 8, 8))
    labels = forward(images).bfloat16().argmax(1)
    adversarial = run(name, lambda x: forward(x).bfloat16(), images, labels, epsilon=LARGE)
    assert adversarial.dtype == torch.float32
    assert share_right(forward, adversarial, labels) == 0


@every_attack
def test_one_image_is_a_batch(name):
    forward = network()
    images = seeded((1, 3, 8, 8))
    labels = forward(images).argmax(1)
    assert share_right(forward, run(name, forward, images, labels, epsilon=LARGE), labels) == 0


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "apgd", "autoattack"])
def test_a_misclassified_image_costs_nothing_and_is_unchanged(name):
    forward = network()
    images = seeded((8, 3, 8, 8))
    labels = forward(images).argmin(1)
    assert torch.equal(run(name, forward, images, labels), images)


def test_vanished_gradients_are_found_per_image():
    def forward(x):
        is_dark = x.flatten(1).mean(1, keepdim=True) < 0.5
        logits = x.flatten(1)[:, :4]
        return torch.where(is_dark, logits, logits.round())

    images = torch.stack([torch.full((3, 8, 8), 0.3), torch.full((3, 8, 8), 0.7)])
    assert has_zero_gradient(forward, images, torch.tensor([0, 0])).tolist() == [False, True]
