"""Auto-PGD (APGD) under l∞: projected gradient steps whose size is halved when they stop helping.

Source: Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks*, ICML 2020. `training.attacks.gradient` documents the arguments and the results. `training.attacks.autoattack`
runs the attacks of the package pyautoattack, also under l2 and l1.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.gradient import Forward, per_image, pixel_bounds, random_point, require_gradient
from training.errors import RecipeError, ZeroGradientError

TARGETS = 9  # maximum number of wrong classes that a targeted attack tries, as in AutoAttack
DLR_CLASSES = 3  # the loss uses the three largest logits
TARGETED_DLR_CLASSES = 4  # the loss uses the four largest

ApgdLoss = Literal["ce", "dlr", "dlr-targeted"]
Keep = Literal["first fooling", "highest loss", "widest margin"]


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
    """Returns images after Auto-PGD: gradient ascent with momentum, and a step size that adapts to each image.

    Source: Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020, section 3 and Algorithm 1. The step size is halved when the loss does not rise enough. The
    start is a random point within epsilon of the image. A run costs `steps` gradients, and one forward pass for the
    last point.

    loss: "ce" is the cross-entropy. "dlr" is the difference of logits ratio (section 4, Eq. 3). It does not depend on
    the scale of the logits, so a saturated softmax does not stop the attack. "dlr-targeted" is the targeted variant of
    the ratio (Eq. 4). It makes one run for each of the `targets` most likely wrong classes, or for all wrong classes if
    there are fewer. Each run attacks only the images that are still classified correctly. Raises RecipeError if the
    model has too few classes: "dlr" needs three, "dlr-targeted" needs four.

    until_fooled: True is for evaluation. The attack on an image ends at the first point that is misclassified, which
    may be the image itself. If no point is misclassified, the result is the point with the highest loss in the first
    run. `forward` receives a part of the batch, so the images of a batch must be independent, as in eval mode.
    False is for training. The whole batch runs all steps, and the result for each image is the point with the highest
    loss. Only "ce" supports False; other losses raise RecipeError.
    """
    keep: Keep = "first fooling" if until_fooled else "highest loss"
    run = partial(_auto_pgd, forward, loss=loss, epsilon=epsilon, steps=steps, generator=generator, keep=keep)
    if not until_fooled:
        if loss != "ce":
            raise RecipeError(f"{loss} needs until_fooled=True: set it, or use the loss ce")
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
            points, losses = run(images[left], labels[left], None if target is None else target[left])
        except ZeroGradientError:
            if number == 0:
                raise
            continue  # the ratio is constant for a class whose logit equals the next two
        is_fooled = losses.isinf()
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
    """Returns images after `apgd` with two losses: the cross-entropy, then `second`.

    The second run attacks only the images that are still classified correctly. With the loss "dlr-targeted" as
    `second`, the two runs are the first two parts of AutoAttack. These parts find most of the adversarial images that
    AutoAttack finds. Raises ZeroGradientError if neither loss has a gradient.
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


def apgd_margin(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns images after Auto-PGD with the losses cross-entropy and DLR. The images often mislead other models too.

    `apgd` ends at the first point that `forward` misclassifies. Another model often classifies this point correctly.
    `apgd_margin` runs all steps with both losses. Its result is the point with the widest margin among all points of
    both runs. The margin is the largest wrong logit minus the logit of the true class. With two classes the DLR loss is
    not defined, and only the cross-entropy runs. Raises ZeroGradientError if no loss has a gradient.
    """
    with torch.no_grad():
        logits = forward(images).float()
    adversarial, widest = images.clone(), _margins(logits, labels)
    losses: list[ApgdLoss] = ["ce", "dlr"] if logits.shape[1] >= DLR_CLASSES else ["ce"]
    blind = 0
    for loss in losses:
        try:
            points, margins = _auto_pgd(
                forward,
                images,
                labels,
                None,
                loss=loss,
                epsilon=epsilon,
                steps=steps,
                generator=generator,
                keep="widest margin",
            )
        except ZeroGradientError:
            blind += 1
            if blind == len(losses):
                raise
            continue
        is_wider = margins > widest
        adversarial[is_wider], widest[is_wider] = points[is_wider], margins[is_wider]
    return adversarial


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
    keep: Keep,
) -> tuple[Tensor, Tensor]:
    """Runs Auto-PGD once. Returns one adversarial point for each image, and a value for each point, (B,).

    target: int64 (B,), the wrong classes for the loss "dlr-targeted"; None for other losses. `keep` selects the point
    and the value that are returned for an image:

    - "first fooling": the first misclassified point, and infinity. The run then ends for this image. If no point is
      misclassified, the point with the highest loss, and this loss.
    - "highest loss": the point with the highest loss, and this loss. All images run all steps.
    - "widest margin": the point with the widest margin, and this margin: the largest wrong logit minus the logit of the
      true class. All images run all steps.
    """
    lower, upper = pixel_bounds(images, epsilon)
    point = random_point(images, lower, upper, epsilon=epsilon, generator=generator)
    previous = best = point
    gradient = best_gradient = torch.zeros_like(images)
    values = images.new_full((len(images),), torch.inf)
    best_loss = checked_loss = widest = -values
    kept = point
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
        with torch.set_grad_enabled(step < steps):  # the gradient of the last point is not used
            logits = forward(x).float()
            losses = _losses(loss, logits, labels[rows], None if target is None else target[rows])
        if step < steps:
            gradient = gradient.index_copy(0, rows, torch.autograd.grad(losses.sum(), x)[0])
        if step == 0:
            require_gradient(gradient)
        losses = losses.detach()
        if keep == "first fooling":
            is_wrong = logits.argmax(1) != labels[rows]
            losses[is_wrong] = torch.inf  # a point that fools is the best one
            left = left[~is_wrong]
        values = values.index_copy(0, rows, losses)
        is_better = values > best_loss
        best_loss = torch.where(is_better, values, best_loss)
        best = torch.where(per_image(is_better), point, best)
        best_gradient = torch.where(per_image(is_better), gradient, best_gradient)
        if keep == "widest margin":
            margins = _margins(logits.detach(), labels)
            is_wider = margins > widest
            widest = torch.where(is_wider, margins, widest)
            kept = torch.where(per_image(is_wider), point, kept)
        if keep == "first fooling" and not len(left):
            break
        rises += values > before
        if step in checkpoints:
            # As in the code of the authors: ≤ where Algorithm 1 has <, and after a return to the best point the next
            # loss is compared with that of the abandoned point.
            pays_no_more = (rises <= 0.75 * (step - checked)) | (~is_halved & (best_loss == checked_loss))
            step_size = torch.where(per_image(pays_no_more), step_size / 2, step_size)
            point = torch.where(per_image(pays_no_more), best, point)
            gradient = torch.where(per_image(pays_no_more), best_gradient, gradient)
            is_halved, checked_loss, checked = pays_no_more, best_loss, step
            rises = torch.zeros_like(rises)
    return (kept, widest) if keep == "widest margin" else (best, best_loss)


def _checkpoints(steps: int) -> set[int]:
    """Returns the steps after which the step size may be halved: the first after 22 % of all, then ever more often."""
    # In whole per cent: rounding of 0.22 + 0.19 + … could raise the ceiling by one step.
    checkpoints = set()
    share = distance = 22
    while share < 100:
        checkpoints.add(-(-share * steps // 100))
        distance = max(distance - 3, 6)
        share += distance
    return checkpoints


def _losses(loss: ApgdLoss, logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Returns the loss of each image, (B,). loss: "ce", "dlr" or "dlr-targeted". logits: (B, K). labels: int64 (B,).

    target: int64 (B,), the wrong classes for "dlr-targeted"; None for other losses.
    """
    if loss == "ce":
        return F.cross_entropy(logits, labels, reduction="none")
    if target is None:
        first, _, third = logits.topk(DLR_CLASSES).values.unbind(1)
        return _margins(logits, labels) / (first - third + 1e-12)
    first, _, third, fourth = logits.topk(TARGETED_DLR_CLASSES).values.unbind(1)
    wrong, right = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (target, labels))
    return (wrong - right) / (first - (third + fourth) / 2 + 1e-12)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the largest wrong logit minus the logit of the true class, (B,): above 0 for a misclassified image."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right


def _likeliest_wrong(logits: Tensor, labels: Tensor, targets: int) -> tuple[Tensor, ...]:
    """Returns the `targets` most likely ones of the wrong classes of each image: a tensor int64 (B,) for each rank."""
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
