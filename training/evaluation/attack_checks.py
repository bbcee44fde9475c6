"""Checks that an attack must pass for its figures to be believed, on a few images: cheap enough for every evaluation.

After Carlini et al., *On evaluating adversarial robustness*, 2019, and the checks of AutoAttack. A check that passes
proves nothing; one that fails says that the robust accuracy beside it is too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.attacks.catalogue import attack_label
from training.attacks.gradient import Forward, vanished
from training.data.datasets import Images
from training.evaluation.accuracy import HALF_255, at_beta, attacked, batches, device_of, right, sign_test
from tureen.bundle.manifest import AccuracyRow, Check
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

IMAGES = 128
NOISE_DRAWS = 10
SIGNIFICANCE = 0.01
VANISHED_SHARE = 0.01
CHECKS = 6
"""How many `sanity_checks` makes at each β, at most."""

Right = NDArray[np.bool_]


def sanity_checks(
    model: nn.Module,
    images: Images,
    *,
    epsilon_255: float,
    steps: int,
    attack: str = "pgd",
    betas: Sequence[float] = (CLEAN_BETA, ROBUST_BETA),
    seed: int = 0,
    on_check: Callable[[], None] = lambda: None,
) -> list[Check]:
    """What must hold of the attack at each β, tried on at most 128 of the images, drawn at random.

    The arguments are those of `evaluate`. Where one attack may not do better than another, a sign test decides, at a
    level of 1 % each. Left out is what cannot be asked: doubled steps of an attack that has no number of them, a single
    step of FGSM. Costs about four times the attack on those images. Raises what `evaluate` raises.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))[:IMAGES]
    few = Images(images.pixels[chosen], images.labels[chosen])
    checks = []
    for beta in betas:
        for check in _checks(model, few, beta=beta, attack=attack, epsilon_255=epsilon_255, steps=steps, seed=seed):
            checks.append(check)
            on_check()
    return checks


def check_radii(curve: Sequence[AccuracyRow]) -> list[Check]:
    """For each β of an `epsilon_curve`: whether a larger radius ever left clearly more than a smaller one.

    Clearly: the two 95 % intervals do not meet.
    """
    checks = []
    for beta in dict.fromkeys(row.beta for row in curve):
        rows = [row for row in curve if row.beta == beta]
        lowest = [min(row.robust.high for row in rows[: index + 1]) for index in range(len(rows))]
        checks.append(
            Check(
                name="a larger radius is never weaker",
                beta=beta,
                n=rows[0].n,
                has_passed=all(row.robust.low <= high for row, high in zip(rows, lowest, strict=True)),
                figures={f"ε {row.epsilon_255:g}/255": row.robust.value for row in rows},
                sentence="what breaks an image in a small radius lies in a larger one too: the attack lost its way",
            )
        )
    return checks


def _checks(
    model: nn.Module, few: Images, *, beta: float, attack: str, epsilon_255: float, steps: int, seed: int
) -> Iterator[Check]:
    forward, device, name = at_beta(model, beta), device_of(model), attack_label(attack, steps)

    def left(attack: str, radius_255: float, steps: int) -> Right:
        return attacked(
            forward, few, device=device, attack=attack, epsilon_255=radius_255, steps=steps, seed=seed
        ).robust

    def check(name: str, has_passed: bool, figures: Mapping[str, float], sentence: str) -> Check:
        return Check(name=name, beta=beta, n=len(few), has_passed=has_passed, figures=dict(figures), sentence=sentence)

    robust = left(attack, epsilon_255, steps)
    twice_name = attack_label(attack, 2 * steps)
    if twice_name != name:
        twice = left(attack, epsilon_255, 2 * steps)
        shares = {name: robust.mean(), twice_name: twice.mean()}
        yield check(
            "twice the steps are never weaker",
            sign_test(twice, robust) >= SIGNIFICANCE,
            shares,
            "more steps lead the attack astray: gradients are masked",
        )
        yield check(
            "twice the steps are hardly stronger",
            sign_test(robust, twice) >= SIGNIFICANCE,
            shares,
            "the attack has not converged: give it more steps",
        )
    if attack != "fgsm":
        single = left("fgsm", epsilon_255, 1)
        yield check(
            "a single step is never stronger",
            sign_test(robust, single) >= SIGNIFICANCE,
            {name: robust.mean(), "FGSM": single.mean()},
            "the loss is bent so that small steps lose their way: gradients are masked",
        )
    noisy = _under_noise(forward, few, device=device, epsilon=epsilon_255 / 255, seed=seed)
    yield check(
        "random noise is never stronger",
        sign_test(robust, noisy) >= SIGNIFICANCE,
        {name: robust.mean(), f"worst of {NOISE_DRAWS} draws": noisy.mean()},
        "the attack follows nothing useful: gradients are masked",
    )
    x, labels = next(batches(few, device))
    with torch.no_grad():
        chance = 1 / forward(x[:1]).shape[1]
    half = left(attack, HALF_255, steps)
    yield check(
        "a radius of a half leaves chance at most",
        bool(half.mean() <= chance),
        {f"{name}, ε {HALF_255:g}/255": half.mean(), "chance": chance},
        "every picture may become grey, so no classifier stands: gradients are masked, or the steps are too few",
    )
    blind = vanished(forward, x, labels).float().mean().item()
    yield check(
        "gradients vanish for few images",
        blind <= VANISHED_SHARE,
        {"without a gradient": blind},
        "the attack is blind to such images, and they count as robust: attack with apgd, whose DLR needs no softmax",
    )


def _under_noise(forward: Forward, few: Images, *, device: torch.device, epsilon: float, seed: int) -> Right:
    """Which images, bool (n,), are right as they are and after each of ten draws of uniform noise within epsilon."""
    generator = torch.Generator(device).manual_seed(seed)
    x, labels = next(batches(few, device))
    stays_right = right(forward, x, labels)
    for _ in range(NOISE_DRAWS):
        noise = epsilon * (2 * torch.rand(x.shape, generator=generator, device=device) - 1)
        stays_right &= right(forward, (x + noise).clamp(0, 1), labels)
    return stays_right
