"""White-box attacks: functions of (forward, images, labels, …) that return adversarial images.

The attacks know nothing about tokens, modes or β. The caller passes a `forward` that is the model at one β.

All attacks stay within an l∞ ball and have these arguments. forward: maps B images to logits (B, K) of K classes.
images: float32 (B, 3, H, W) in [0, 1]. labels: the true classes, int64 (B,). epsilon: radius of the ball, for pixels in
[0, 1]. generator: source of random numbers, on the device of the images.

An attack returns detached float32 (B, 3, H, W) in [0, 1]. No value differs by more than epsilon from `images`. An
attack computes gradients with respect to the images only, so the `.grad` of parameters stays unchanged. An attack
raises ZeroGradientError if the gradient at the start is zero for the whole batch. In this case the attack could not
move, and the model would only appear robust.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.errors import ZeroGradientError

Forward = Callable[[Tensor], Tensor]


def fgsm(forward: Forward, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Returns images after the fast gradient sign method: one step of size epsilon along the sign of the gradient.

    The gradient is that of the cross-entropy. Source: Goodfellow et al., *Explaining and harnessing adversarial
    examples*, ICLR 2015. Training can use a variant with a random start: `pgd` with one step of 1.25·epsilon (Wong et
    al., *Fast is better than free*, ICLR 2020).
    """
    gradient = loss_gradient(forward, images, labels)
    require_gradient(gradient)
    return (images + epsilon * gradient.sign_()).clamp_(0.0, 1.0)


def pgd(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns images after projected gradient descent: `steps` steps that increase the cross-entropy.

    Source: Madry et al., *Towards deep learning models resistant to adversarial attacks*, ICLR 2018. The start is a
    random point within epsilon of the image, and the result is the last point. step_size: in the units of epsilon.
    labels: as for `F.cross_entropy`: classes int64 (B,), or distributions over classes (B, K). If the logits have a
    third axis, (B, K, N), the labels are int64 (B, N).
    """
    lower, upper = pixel_bounds(images, epsilon)
    adversarial = random_point(images, lower, upper, epsilon=epsilon, generator=generator)
    for step in range(steps):
        gradient = loss_gradient(forward, adversarial, labels)
        if step == 0:
            require_gradient(gradient)
        adversarial = adversarial.add_(gradient.sign_(), alpha=step_size).clamp_(lower, upper)
    return adversarial


def mi_fgsm(forward: Forward, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """Returns images after momentum iterative FGSM: each step follows the sign of the sum of all gradients so far.

    Source: Dong et al., *Boosting adversarial attacks with momentum*, CVPR 2018, Algorithm 1 with a decay factor of 1.
    Each of the `steps` steps has the size epsilon / steps. Each gradient is scaled to an l1 norm of 1 before it is
    added. The start is the image, and the result is the last point.
    """
    lower, upper = pixel_bounds(images, epsilon)
    adversarial = images.clone()
    momentum = torch.zeros_like(images)
    for step in range(steps):
        gradient = loss_gradient(forward, adversarial, labels)
        if step == 0:
            require_gradient(gradient)
        norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        momentum += torch.where(norm > 0, gradient / norm, 0.0)
        adversarial = adversarial.add_(momentum.sign(), alpha=epsilon / steps).clamp_(lower, upper)
    return adversarial


def has_zero_gradient(forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
    """Returns whether the gradient of the cross-entropy is exactly zero for each image, bool (B,).

    The model may appear robust on such an image only because the attack cannot move. If there are many such images, the
    result of the attack is not reliable (Carlini et al., *On evaluating adversarial robustness*, 2019).
    """
    return ~loss_gradient(forward, images, labels).flatten(1).any(1)


def loss_gradient(forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
    """Returns the gradient of the cross-entropy, summed over the batch, with respect to the images."""
    x = images.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(forward(x).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def require_gradient(gradient: Tensor) -> None:
    if not gradient.any():
        raise ZeroGradientError("the loss has no gradient with respect to the images: the attack cannot move")


def pixel_bounds(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns the lower and the upper bound of each value: at most epsilon from the image, and within [0, 1]."""
    return (images - epsilon).clamp_(min=0.0), (images + epsilon).clamp_(max=1.0)


def random_point(
    images: Tensor, lower: Tensor, upper: Tensor, *, epsilon: float, generator: torch.Generator | None
) -> Tensor:
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    return (images + epsilon * (2 * noise - 1)).clamp_(lower, upper)


def per_image(values: Tensor) -> Tensor:
    """Returns values (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
