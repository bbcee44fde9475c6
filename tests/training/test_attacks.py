"""An attack is trusted once it finds what was hidden for it, and refuses where it cannot work."""

import pytest
import torch

from training.attacks import pgd
from training.errors import ZeroGradientError

EPSILON = 8 / 255


def linear(weight):
    """A two-class linear model whose margin is <weight, x − ½>."""

    def forward(x):
        margin = ((x - 0.5) * weight).flatten(1).sum(1)
        return torch.stack([margin, -margin], dim=1)

    return forward


def attack(forward, images, labels, **options):
    options = {"epsilon": EPSILON, "steps": 10, "step_size": EPSILON / 4, **options}
    return pgd(forward, images, labels, generator=torch.Generator().manual_seed(0), **options)


def test_the_strongest_point_of_a_linear_model_is_found():
    """For a linear model the optimum is known: every pixel moves ε against its weight."""
    torch.manual_seed(0)
    weight = torch.randn(3, 8, 8)
    images = torch.full((4, 3, 8, 8), 0.5)
    labels = torch.tensor([0, 1, 0, 1])
    adversarial = attack(linear(weight), images, labels)
    sign = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None]
    torch.testing.assert_close(adversarial, images + EPSILON * sign * weight.sign())


def test_a_planted_adversarial_example_is_found():
    """Right everywhere but in one corner of the ε-ball, with a slope that leads there."""
    target = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float() * 2 - 1
    images = torch.full((1, 3, 8, 8), 0.5)

    def forward(x):
        distance = (x - (images + EPSILON * target)).flatten(1).norm(dim=1)
        return torch.stack([distance - 0.01, torch.zeros_like(distance)], dim=1)

    labels = torch.tensor([0])
    assert forward(images).argmax(1) == 0
    assert forward(attack(forward, images, labels, steps=40)).argmax(1) == 1


def test_the_result_stays_within_epsilon_and_the_range():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 8, 8)
    adversarial = attack(linear(torch.randn(3, 8, 8)), images, torch.zeros(8, dtype=torch.int64), step_size=1.0)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= EPSILON + 1e-6
    assert not adversarial.requires_grad


def test_more_steps_are_never_weaker():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    images, labels = torch.rand(64, 3, 8, 8), torch.randint(0, 5, (64,))

    def loss(steps):
        adversarial = attack(network, images, labels, steps=steps, step_size=2.5 * EPSILON / steps)
        return torch.nn.functional.cross_entropy(network(adversarial), labels).item()

    # Steps of the right size for their number: equal within what a random start is worth.
    assert loss(1) < loss(5) + 1e-3
    assert loss(5) < loss(40) + 1e-3


def test_only_the_images_get_gradients():
    layer = torch.nn.Linear(192, 2)
    attack(lambda x: layer(x.flatten(1)), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert layer.weight.grad is None


def test_the_start_is_random_and_the_seed_repeats_it():
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    forward = linear(torch.randn(3, 8, 8))
    first, again = (attack(forward, images, labels, steps=1, step_size=1e-4) for _ in range(2))
    other = pgd(
        forward, images, labels, epsilon=EPSILON, steps=1, step_size=1e-4, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_vanished_gradient_is_an_error_not_robustness():
    def flat(x):
        return (x.flatten(1)[:, :2] * 0).round() + torch.tensor([1.0, 0.0])

    with pytest.raises(ZeroGradientError):
        attack(flat, torch.rand(2, 3, 8, 8), torch.tensor([0, 0]))
