"""Small models for the tests of attacks, and images for them."""

import torch

from training.attacks.catalogue import ATTACKS

EPSILON = 8 / 255
LARGE = 0.2  # with this radius, every attack breaks the network below
GRADIENT = [name for name in ATTACKS if name not in ("autoattack", "square")]
ITERATIVE = [name for name in GRADIENT if name != "fgsm"]


def run(name, forward, images, labels, *, epsilon=EPSILON, steps=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ATTACKS[name](forward, images, labels, epsilon=epsilon, steps=steps, generator=generator)


def seeded(shape, *, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def four_classes(margin):
    """Return logits: class 0 if the margin (B,) is positive, else class 1; two more classes are never predicted."""
    never = torch.full_like(margin, -20.0)
    return torch.stack([margin / 2, -margin / 2, never, never], dim=1)


def network(scale=1.0):
    """A random function from images (B, 3, 8, 8) to the logits of 5 classes, curved enough to mislead a single step."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    body.requires_grad_(False)
    return lambda images: scale * body(8 * (images - 0.5))


def sure_images(forward, count):
    """Return the most confidently classified of a thousand random images, with the predicted labels."""
    images = seeded((1000, 3, 8, 8))
    best, second = forward(images).topk(2).values.unbind(1)
    images = images[(best - second).topk(count).indices]
    return images, forward(images).argmax(1)


def share_right(forward, images, labels):
    return (forward(images).argmax(1) == labels).float().mean().item()
