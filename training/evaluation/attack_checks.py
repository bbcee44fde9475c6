"""Checks on a few images that an attack is strong enough. The cost is low enough for every evaluation.

After Carlini et al., *On evaluating adversarial robustness*, 2019, and the checks of AutoAttack. A failed check means
that the reported robust accuracy is too high. A passed check proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.attacks.catalogue import attack_label
from training.attacks.gradient import Forward, has_zero_gradient
from training.data.datasets import Images
from training.evaluation.accuracy import (
    MID_GREY_RADIUS_255,
    forward_at_beta,
    image_batches,
    is_correct,
    model_device,
    run_attack,
    sign_test,
)
from tureen.bundle.manifest import AccuracyRow, AttackCheck
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

IMAGES = 128
NOISE_DRAWS = 10
SIGNIFICANCE = 0.01
MAX_ZERO_GRADIENTS = 0.01
CHECKS = 6
"""Maximum number of checks that `check_attack` makes at each β."""


def check_attack(
    model: nn.Module,
    images: Images,
    *,
    epsilon_255: float,
    steps: int,
    attack: str = "pgd",
    betas: Sequence[float] = (CLEAN_BETA, ROBUST_BETA),
    seed: int = 0,
    on_check: Callable[[], None] = lambda: None,
) -> list[AttackCheck]:
    """Returns the results of all checks of the attack at each β, on at most 128 of the images, drawn at random.

    The arguments are those of `evaluate_accuracy`. A sign test at a level of 1 % decides whether one attack is stronger
    than another. A check that does not apply is omitted: the comparison with twice the steps for an attack without
    steps, and with a single step for FGSM. The checks cost about four attacks on those images. on_check: called after
    each check. Raises the errors of `evaluate_accuracy`.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))[:IMAGES]
    few = Images(images.pixels[chosen], images.labels[chosen])
    checks = []
    for beta in betas:
        for check in _checks(model, few, beta=beta, attack=attack, epsilon_255=epsilon_255, steps=steps, seed=seed):
            checks.append(check)
            on_check()
    return checks


def check_epsilon_curve(curve: Sequence[AccuracyRow]) -> list[AttackCheck]:
    """Returns a check for each β: robust accuracy does not grow with the radius.

    curve: result of `evaluate_epsilon_curve`. A difference counts only if the two 95 % intervals do not overlap.
    """
    checks = []
    for beta in dict.fromkeys(row.beta for row in curve):
        rows = [row for row in curve if row.beta == beta]
        lowest = [min(row.robust.high for row in rows[: index + 1]) for index in range(len(rows))]
        checks.append(
            AttackCheck(
                name="a larger radius is never weaker",
                beta=beta,
                n=rows[0].n,
                has_passed=all(row.robust.low <= high for row, high in zip(rows, lowest, strict=True)),
                figures={f"ε {row.epsilon_255:g}/255": row.robust.value for row in rows},
                sentence="a larger radius includes the smaller one: the attack did not find a point that exists",
            )
        )
    return checks


def _checks(
    model: nn.Module, few: Images, *, beta: float, attack: str, epsilon_255: float, steps: int, seed: int
) -> Iterator[AttackCheck]:
    forward, device, name = forward_at_beta(model, beta), model_device(model), attack_label(attack, steps)

    def attacked(attack: str, radius_255: float, steps: int) -> NDArray[np.bool_]:
        return run_attack(
            forward, few, device=device, attack=attack, epsilon_255=radius_255, steps=steps, seed=seed
        ).robust

    def check(name: str, has_passed: bool, figures: Mapping[str, float], sentence: str) -> AttackCheck:
        return AttackCheck(
            name=name, beta=beta, n=len(few), has_passed=has_passed, figures=dict(figures), sentence=sentence
        )

    robust = attacked(attack, epsilon_255, steps)
    twice_name = attack_label(attack, 2 * steps)
    if twice_name != name:
        twice = attacked(attack, epsilon_255, 2 * steps)
        shares = {name: robust.mean(), twice_name: twice.mean()}
        yield check(
            "twice the steps are never weaker",
            sign_test(twice, robust) >= SIGNIFICANCE,
            shares,
            "more steps made the attack weaker: gradients are masked",
        )
        yield check(
            "twice the steps are hardly stronger",
            sign_test(robust, twice) >= SIGNIFICANCE,
            shares,
            "the attack has not converged: give it more steps",
        )
    if attack != "fgsm":
        single = attacked("fgsm", epsilon_255, 1)
        yield check(
            "a single step is never stronger",
            sign_test(robust, single) >= SIGNIFICANCE,
            {name: robust.mean(), "FGSM": single.mean()},
            "many small steps are weaker than one large step: gradients are masked",
        )
    noisy = _under_noise(forward, few, device=device, epsilon=epsilon_255 / 255, seed=seed)
    yield check(
        "random noise is never stronger",
        sign_test(robust, noisy) >= SIGNIFICANCE,
        {name: robust.mean(), f"worst of {NOISE_DRAWS} draws": noisy.mean()},
        "the gradients are no better than random directions: gradients are masked",
    )
    x, labels = next(image_batches(few, device))
    with torch.no_grad():
        chance = 1 / forward(x[:1]).shape[1]
    half = attacked(attack, MID_GREY_RADIUS_255, steps)
    yield check(
        "a radius of a half leaves chance at most",
        bool(half.mean() <= chance),
        {f"{name}, ε {MID_GREY_RADIUS_255:g}/255": half.mean(), "chance": chance},
        "every image can become grey, so no classifier is robust: gradients are masked, or the steps are too few",
    )
    zero_gradients = has_zero_gradient(forward, x, labels).float().mean().item()
    yield check(
        "gradients vanish for few images",
        zero_gradients <= MAX_ZERO_GRADIENTS,
        {"without a gradient": zero_gradients},
        "images without a gradient count as robust: attack with apgd, whose DLR loss does not use the softmax",
    )


def _under_noise(
    forward: Forward, few: Images, *, device: torch.device, epsilon: float, seed: int
) -> NDArray[np.bool_]:
    """Returns for each image whether it is classified right, unchanged and after ten draws of noise, bool (n,).

    The noise is uniform within the radius.
    """
    generator = torch.Generator(device).manual_seed(seed)
    x, labels = next(image_batches(few, device))
    stays_right = is_correct(forward, x, labels)
    for _ in range(NOISE_DRAWS):
        noise = epsilon * (2 * torch.rand(x.shape, generator=generator, device=device) - 1)
        stays_right &= is_correct(forward, (x + noise).clamp(0, 1), labels)
    return stays_right
