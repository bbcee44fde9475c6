"""White-box attacks: functions of (forward, images, labels, …) that return adversarial images.

Know nothing about tokens, modes or β: whoever calls binds them into `forward`.

All of them stay under l∞, and share these words. forward: images to logits (B, K). images: float32 (B, 3, H, W) in
[0, 1]. labels: int64 (B,). epsilon: the radius in units of the [0, 1] range, so 8/255 is 0.0314. generator: on the
images' device. They return float32 (B, 3, H, W) in [0, 1], nowhere further than epsilon from `images`, detached. Only
gradients with respect to the images are computed: no parameter's `.grad` is touched. Where the gradient at the start
vanishes for the whole batch they raise ZeroGradientError: an attack that cannot move would report robustness that is
not there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.errors import RecipeError, ZeroGradientError

Forward = Callable[[Tensor], Tensor]

TARGETS = 9  # the wrong classes that a targeted attack tries at most, as in AutoAttack
DLR_CLASSES = 3  # the loss is made of the three largest logits
TARGETED_DLR_CLASSES = 4  # of the four largest

ApgdLoss = Literal["ce", "dlr", "dlr-targeted"]


def fgsm(forward: Forward, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """The fast gradient sign method: from the image itself, one step of ε along the cross-entropy's gradient.

    Source: Goodfellow et al., *Explaining and harnessing adversarial examples*, ICLR 2015.
    The variant for training that starts at random is `pgd` with one step of 1.25·ε (Wong et al., *Fast is better than
    free*, ICLR 2020).
    """
    gradient = _gradient(forward, images, labels)
    _require_some(gradient)
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
    """Projected gradient descent: `steps` ascents of the cross-entropy from a uniformly random start.

    Source: Madry et al., *Towards deep learning models resistant to adversarial attacks*, ICLR 2018.
    labels: what `F.cross_entropy` takes with the logits: int64 (B,), distributions (B, K), or int64 (B, T) where the
    logits are (B, K, T). step_size: in the units of epsilon. Returns the last point.
    """
    lower, upper = _box(images, epsilon)
    adversarial = _random_point(images, lower, upper, epsilon=epsilon, generator=generator)
    for step in range(steps):
        gradient = _gradient(forward, adversarial, labels)
        if step == 0:
            _require_some(gradient)
        adversarial = adversarial.add_(gradient.sign_(), alpha=step_size).clamp_(lower, upper)
    return adversarial


def mi_fgsm(forward: Forward, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """Momentum iterative FGSM: from the image itself, `steps` of ε/steps along the sum of all gradients so far.

    Source: Dong et al., *Boosting adversarial attacks with momentum*, CVPR 2018, Algorithm 1 with a decay factor of 1.
    Each gradient is divided by its l1 norm before it is added. Returns the last point.
    """
    lower, upper = _box(images, epsilon)
    adversarial = images.clone()
    momentum = torch.zeros_like(images)
    for step in range(steps):
        gradient = _gradient(forward, adversarial, labels)
        if step == 0:
            _require_some(gradient)
        norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        momentum += torch.where(norm > 0, gradient / norm, 0.0)
        adversarial = adversarial.add_(momentum.sign(), alpha=epsilon / steps).clamp_(lower, upper)
    return adversarial


def apgd(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    loss: ApgdLoss = "ce",
    targets: int = TARGETS,
    until_fooled: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD: ascent with momentum, its step halved, image by image, where it no longer pays; keeps the best point.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020, section 3 and Algorithm 1. The start is uniform in the box, as in `pgd`. A run costs `steps`
    gradients, and a forward pass for the last point.

    loss: "ce", the cross-entropy; "dlr", the difference of logits ratio (section 4, Eq. 3); or "dlr-targeted"
    (Eq. 4), a run for each of the `targets` most likely wrong classes, at most K − 1, on the images that no run before
    it fooled. The ratio is blind to the scale of the logits, so a saturated softmax does not stop it. Raises
    RecipeError where it is not defined: "dlr" below three classes, "dlr-targeted" below four.

    until_fooled: as an evaluation wants it, an image is done with at the first point that is classified wrong, be it
    the image itself; where none is, the first run's point of highest loss is returned. `forward` is called with part of
    the batch, so it must judge each image alone, as in eval mode. Without it, as training wants it, the batch stays
    whole for all steps and each image's point of highest loss is returned; the cross-entropy alone knows that form.
    """
    run = partial(
        _auto_pgd, forward, loss=loss, epsilon=epsilon, steps=steps, generator=generator, until_fooled=until_fooled
    )
    if not until_fooled:
        if loss != "ce":
            raise RecipeError(f"{loss} stops at the first success: set until_fooled, or take the loss ce")
        return run(images, labels, None)[0]
    with torch.no_grad():
        logits = forward(images)
    _require_classes(loss, logits.shape[1])
    runs: list[Tensor | None] = [*_likeliest_wrong(logits, labels, targets)] if loss == "dlr-targeted" else [None]
    adversarial = images.clone()
    left = (logits.argmax(1) == labels).nonzero().squeeze(1)
    for number, target in enumerate(runs):
        if not len(left):
            break
        try:
            points, is_fooled = run(images[left], labels[left], None if target is None else target[left])
        except ZeroGradientError:
            if number == 0:
                raise
            continue  # towards a class that ties with the next two the ratio is constant
        is_kept = is_fooled | (number == 0)
        adversarial[left[is_kept]] = points[is_kept]
        left = left[~is_fooled]
    return adversarial


def apgd_both(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    second: ApgdLoss = "dlr-targeted",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`apgd` on the cross-entropy, then on `second` for the images that are still right: each image's worst.

    With the targeted DLR these are the first two parts of AutoAttack, and most of what it finds. Raises
    ZeroGradientError where neither loss has a gradient.
    """
    run = partial(apgd, forward, epsilon=epsilon, steps=steps, generator=generator)
    is_blind = False
    try:
        adversarial = run(images, labels)
    except ZeroGradientError:
        adversarial, is_blind = images.clone(), True
    with torch.no_grad():
        left = (forward(adversarial).argmax(1) == labels).nonzero().squeeze(1)
    if len(left):
        try:
            adversarial[left] = run(images[left], labels[left], loss=second)
        except ZeroGradientError:
            if is_blind:
                raise
    return adversarial


def vanished(forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the gradient of the cross-entropy is exactly zero at the image itself, bool (B,).

    Such an image may look robust because the attack is blind: a share of them that is not small is a reason to distrust
    the result (Carlini et al., *On evaluating adversarial robustness*, 2019).
    """
    return ~_gradient(forward, images, labels).flatten(1).any(1)


def _auto_pgd(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    target: Tensor | None,
    *,
    loss: ApgdLoss,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None,
    until_fooled: bool,
) -> tuple[Tensor, Tensor]:
    """One run on the loss, "dlr-targeted" towards `target` (B,): each image's best point, and which images it fooled.

    Rows that were fooled leave the forward passes; what is computed for them beside those is not used.
    """
    lower, upper = _box(images, epsilon)
    point = _random_point(images, lower, upper, epsilon=epsilon, generator=generator)
    previous = best = point
    gradient = best_gradient = torch.zeros_like(images)
    values = images.new_full((len(images),), torch.inf)
    best_loss = checked_loss = -values
    step_size = images.new_full((len(images), 1, 1, 1), 2 * epsilon)
    is_halved = torch.ones_like(labels, dtype=torch.bool)
    rises = torch.zeros_like(labels)
    left = torch.arange(len(images), device=images.device)
    checkpoints = _checkpoints(steps)
    checked = 0
    for step in range(steps + 1):
        if step:
            ascended = (point + step_size * gradient.sign()).clamp_(lower, upper)
            if step > 1:
                ascended = (point + 0.75 * (ascended - point) + 0.25 * (point - previous)).clamp_(lower, upper)
            previous, point = point, ascended
        before, rows = values, left
        x = point[rows].requires_grad_(True)
        with torch.set_grad_enabled(step < steps):  # nothing follows the last point's gradient
            logits = forward(x).float()
            losses = _losses(loss, logits, labels[rows], None if target is None else target[rows])
        if step < steps:
            gradient = gradient.index_copy(0, rows, torch.autograd.grad(losses.sum(), x)[0])
        if step == 0:
            _require_some(gradient)
        losses = losses.detach()
        if until_fooled:
            is_wrong = logits.argmax(1) != labels[rows]
            losses[is_wrong] = torch.inf  # no point is better than one that fools
            left = left[~is_wrong]
        values = values.index_copy(0, rows, losses)
        is_better = values > best_loss
        best_loss = torch.where(is_better, values, best_loss)
        best = torch.where(_per_image(is_better), point, best)
        best_gradient = torch.where(_per_image(is_better), gradient, best_gradient)
        if until_fooled and not len(left):
            break
        rises += values > before
        if step in checkpoints:
            # As in the authors' code, whose steps these are: ≤ where Algorithm 1 has <, and after a return to the best
            # point the next loss is compared with that of the point given up.
            pays_no_more = (rises <= 0.75 * (step - checked)) | (~is_halved & (best_loss == checked_loss))
            step_size = torch.where(_per_image(pays_no_more), step_size / 2, step_size)
            point = torch.where(_per_image(pays_no_more), best, point)
            gradient = torch.where(_per_image(pays_no_more), best_gradient, gradient)
            is_halved, checked_loss, checked = pays_no_more, best_loss, step
            rises = torch.zeros_like(rises)
    return best, best_loss.isinf()


def _checkpoints(steps: int) -> set[int]:
    """Before which steps the step size may be halved: at 22 % of the steps, then at ever smaller distances."""
    # In whole per cent: a sum of 0.22, 0.19, … may end just above a whole step, and the ceiling one too far.
    checkpoints = set()
    share = distance = 22
    while share < 100:
        checkpoints.add(-(-share * steps // 100))
        distance = max(distance - 3, 6)
        share += distance
    return checkpoints


def _losses(loss: ApgdLoss, logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """What Auto-PGD ascends, (B,): the cross-entropy, or the difference of logits ratio, towards `target` if given."""
    if loss == "ce":
        return F.cross_entropy(logits, labels, reduction="none")
    if target is None:
        first, _, third = logits.topk(DLR_CLASSES).values.unbind(1)
        right = logits.gather(1, labels[:, None]).squeeze(1)
        wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return (wrong - right) / (first - third + 1e-12)
    first, _, third, fourth = logits.topk(TARGETED_DLR_CLASSES).values.unbind(1)
    wrong, right = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (target, labels))
    return (wrong - right) / (first - (third + fourth) / 2 + 1e-12)


def _likeliest_wrong(logits: Tensor, labels: Tensor, targets: int) -> tuple[Tensor, ...]:
    """For each rank the wrong class of that rank, int64 (B,), the likeliest first."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.topk(min(targets, logits.shape[1] - 1)).indices.unbind(1)


def _require_classes(loss: ApgdLoss, classes: int) -> None:
    if loss == "dlr" and classes < DLR_CLASSES:
        raise RecipeError(f"the DLR loss needs {DLR_CLASSES} classes, the model has {classes}: attack with apgd-ce")
    if loss == "dlr-targeted" and classes < TARGETED_DLR_CLASSES:
        raise RecipeError(
            f"the targeted DLR loss needs {TARGETED_DLR_CLASSES} classes, the model has {classes}: attack with "
            "apgd-dlr, apgd-ce or pgd"
        )


def _gradient(forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross-entropy, summed over the batch, with respect to the images."""
    x = images.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(forward(x).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def _require_some(gradient: Tensor) -> None:
    if not gradient.any():
        raise ZeroGradientError("the loss has no gradient with respect to the images: the attack cannot move")


def _box(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of each pixel: no further than epsilon away, and within [0, 1]."""
    return (images - epsilon).clamp_(min=0.0), (images + epsilon).clamp_(max=1.0)


def _random_point(
    images: Tensor, lower: Tensor, upper: Tensor, *, epsilon: float, generator: torch.Generator | None
) -> Tensor:
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    return (images + epsilon * (2 * noise - 1)).clamp_(lower, upper)


def _per_image(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
