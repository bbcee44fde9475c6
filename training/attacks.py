"""White-box attacks: functions of (forward, images, labels, …) that return adversarial images.

Know nothing about tokens, modes or β: whoever calls binds them into `forward`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.errors import ZeroGradientError

Forward = Callable[[Tensor], Tensor]


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
    """Projected gradient descent under l∞: `steps` ascents of the cross-entropy from a uniformly random start.

    Source: Madry et al., *Towards deep learning models resistant to adversarial attacks*, ICLR 2018.
    forward: images to logits (B, K). images: float32 (B, 3, H, W) in [0, 1]. labels: int64 (B,).
    epsilon, step_size: in units of the [0, 1] range, so 8/255 is 0.0314. Returns float32 (B, 3, H, W) in [0, 1],
    nowhere further than epsilon from `images`, detached. Only the gradient with respect to the images is
    computed: no parameter's `.grad` is touched. Raises ZeroGradientError where the gradient at the start vanishes for
    the whole batch: an attack that cannot move would report robustness that is not there.
    """
    lower = (images - epsilon).clamp_(min=0.0)
    upper = (images + epsilon).clamp_(max=1.0)
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    adversarial = (images + epsilon * (2 * noise - 1)).clamp_(lower, upper)
    for step in range(steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(forward(adversarial).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
        if step == 0 and not gradient.any():
            raise ZeroGradientError("the loss has no gradient with respect to the images: the attack cannot move")
        adversarial = adversarial.detach().add_(gradient.sign_(), alpha=step_size)
        adversarial = adversarial.clamp_(lower, upper)
    return adversarial.detach()
