"""Checks on a few images that an attack is strong enough. The cost is low enough for every evaluation.

Sources: Carlini et al., *On evaluating adversarial robustness*, 2019, and the checks of AutoAttack. A failed check
means that the reported robust accuracy is too high. A passed check proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.attacks.catalogue import max_gradients, suitable_attack
from training.attacks.gradient import Forward, has_zero_gradient
from training.attacks.names import attack_label
from training.data.datasets import Images
from training.errors import ZeroGradientError
from training.evaluation.accuracy import (
    MID_GREY_RADIUS_255,
    AttackOutcome,
    forward_at_beta,
    image_batches,
    model_device,
    run_attack,
    sign_test,
)
from tureen.bundle.manifest import AccuracyRow, AttackCheck, Norm
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

IMAGES = 128
APGD_IMAGES = 512
SQUARE_QUERIES = 200
REFERENCE_STEPS = 40
CONVERGED_STEPS = 20
SIGNIFICANCE = 0.01
MAX_ZERO_GRADIENTS = 0.01
CROSS_ENTROPY_ONLY = ("fgsm", "pgd", "mi-fgsm", "apgd-ce")  # attacks that fail where the softmax is saturated
MODES = (CLEAN_BETA, ROBUST_BETA)
LARGER_RADIUS = "a larger radius is never weaker"
"""Name of the check of `check_epsilon_curve`."""
CHECKS_AT_EACH_BETA, CHECKS_AT_A_MODE = 2, 5
"""Maximum numbers of checks in `check_attack`: at each β, and in addition at each of the two modes."""


def check_attack(
    model: nn.Module,
    images: Images,
    *,
    outcomes: Mapping[float, AttackOutcome],
    epsilon_255: float,
    steps: int,
    attack: str,
    norm: Norm = "linf",
    seed: int = 0,
    on_check: Callable[[], None] = lambda: None,
) -> list[AttackCheck]:
    """Returns the results of all checks of an attack at each β.

    outcomes: the result of `attack_each_beta`. The checks test the robust accuracy in it. on_check: called after each
    check. The other arguments and the errors are those of `attack_each_beta`. The checks run on a random sample of at
    most 128 images. Only the comparison with APGD runs on up to 512, because this check finds most weak attacks.

    The checks at each β:

    - APGD with several losses and twice the steps, at least 40, is not stronger. Omitted if the attack is this APGD
      under l∞ with at least 20 steps, and for AutoAttack, which includes APGD.
    - Square, which needs no gradient, is not stronger. Omitted for AutoAttack, which includes Square, and under l2 and
      l1.

    The checks at β = 0 and 1 only, under l∞:

    - The attack with twice the steps is not weaker, and not stronger. Omitted for attacks without a number of steps.
    - A single step (FGSM) is not stronger. Omitted if the attack is FGSM.
    - At a radius of half the pixel range, the accuracy is at most that of chance.
    - For attacks on the cross-entropy: few images have a zero gradient.

    One attack is stronger than another if it breaks more images, by a sign test at the 1 % level.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    checks = []
    for beta, outcome in outcomes.items():

        def checker(at_most: int, beta: float = beta, outcome: AttackOutcome = outcome) -> _Checker:
            chosen = order[:at_most]
            few = Images(images.pixels[chosen], images.labels[chosen])
            return _Checker(model, few, outcome.robust[chosen], beta, attack, epsilon_255, steps, norm, seed + 1)

        others = checker(IMAGES).checks() if norm == "linf" else ()
        for check in chain(checker(APGD_IMAGES).against_apgd(), others):
            checks.append(check)
            on_check()
    return checks


def check_epsilon_curve(curve: Sequence[AccuracyRow]) -> list[AttackCheck]:
    """Checks at each β that the robust accuracy does not grow with the radius. Returns one result for each β.

    curve: result of `evaluate_epsilon_curve`. A difference counts only if the two 95 % intervals do not overlap.
    """
    checks = []
    for beta in dict.fromkeys(row.beta for row in curve):
        rows = [row for row in curve if row.beta == beta]
        lowest = [min(row.robust.high for row in rows[: index + 1]) for index in range(len(rows))]
        checks.append(
            AttackCheck(
                name=LARGER_RADIUS,
                beta=beta,
                n=rows[0].n,
                has_passed=all(row.robust.low <= high for row, high in zip(rows, lowest, strict=True)),
                figures={f"ε {row.epsilon_255:g}/255": row.robust.value for row in rows},
                sentence="a larger radius includes the smaller one: the attack did not find a point that exists",
            )
        )
    return checks


def max_check_gradients(n: int, betas: Sequence[float], *, attack: str, steps: int, classes: int) -> int | None:
    """Returns the largest number of gradients that `check_attack` computes under l∞; None if it is unknown.

    n: number of images. betas: the β whose attacks are checked. Three forward passes count as one gradient.
    """
    twice = max_gradients(attack, 2 * steps, classes)
    apgd = max_gradients(suitable_attack("apgd", classes), _steps_of_apgd(steps), classes)
    if twice is None or apgd is None:
        return None
    at_modes = len(set(betas) & set(MODES)) * twice * min(n, IMAGES)
    square = len(betas) * SQUARE_QUERIES * min(n, IMAGES) // 3
    omits_apgd = _is_converged_apgd(attack, steps, classes)
    return at_modes + square + (0 if omits_apgd else len(betas) * apgd * min(n, APGD_IMAGES))


def _is_converged_apgd(attack: str, steps: int, classes: int) -> bool:
    """Returns whether an attack under l∞ is already the APGD that other attacks are compared with."""
    return attack == suitable_attack("apgd", classes) and steps >= CONVERGED_STEPS


def _steps_of_apgd(steps: int) -> int:
    """Returns the steps of the APGD with which an attack of `steps` steps is compared."""
    return max(2 * steps, REFERENCE_STEPS)


@dataclass(frozen=True)
class _Checker:
    """Checks an attack at one β on a few images.

    few: the n images. robust: whether each image is classified correctly both without and under the attack, bool (n,).
    beta: the β of the model. attack, steps, norm: the attack to check. epsilon_255: radius of the attack in `norm`, in
    1/255. seed: that of the random numbers of the checks.
    """

    model: nn.Module
    few: Images
    robust: NDArray[np.bool_]
    beta: float
    attack: str
    epsilon_255: float
    steps: int
    norm: Norm
    seed: int

    def checks(self) -> Iterator[AttackCheck]:
        """Yields the results of all checks except the comparison with APGD."""
        if self.attack != "autoattack":  # includes Square with more queries
            yield self._compared(
                "an attack without gradients is never stronger",
                "square",
                SQUARE_QUERIES,
                "random search breaks more images than gradients do: gradients are masked",
            )
        if self.beta in MODES:
            yield from self._more_and_fewer_steps()
            yield self._at_a_radius_of_a_half()
            if self.attack in CROSS_ENTROPY_ONLY:
                yield self._vanished_gradients()

    def against_apgd(self) -> Iterator[AttackCheck]:
        """Yields the result of the check that APGD is not stronger. Yields nothing if the check is omitted."""
        classes = self._classes()
        is_converged = self.norm == "linf" and _is_converged_apgd(self.attack, self.steps, classes)
        if self.attack != "autoattack" and not is_converged:
            yield self._compared(
                "APGD is never stronger",
                suitable_attack("apgd", classes),
                _steps_of_apgd(self.steps),
                "an attack with other losses or more steps breaks more images: the robust accuracy is too high",
            )

    def _more_and_fewer_steps(self) -> Iterator[AttackCheck]:
        twice_name = attack_label(self.attack, 2 * self.steps)
        if twice_name != self._name:
            twice = self._robust_under(self.attack, 2 * self.steps)
            shares = {self._name: self.robust.mean(), twice_name: twice.mean()}
            yield self._check(
                "twice the steps are never weaker",
                sign_test(twice, self.robust) >= SIGNIFICANCE,
                shares,
                "more steps made the attack weaker: gradients are masked",
            )
            yield self._check(
                "twice the steps are hardly stronger",
                sign_test(self.robust, twice) >= SIGNIFICANCE,
                shares,
                "the attack has not converged: give it more steps",
            )
        if self.attack != "fgsm":
            yield self._compared(
                "a single step is never stronger",
                "fgsm",
                1,
                "many small steps are weaker than one large step: gradients are masked",
            )

    def _at_a_radius_of_a_half(self) -> AttackCheck:
        half = self._robust_under(self.attack, self.steps, radius_255=MID_GREY_RADIUS_255)
        chance = 1 / self._classes()
        return self._check(
            "a radius of a half leaves chance at most",
            bool(half.mean() <= chance),
            {f"{self._name}, ε {MID_GREY_RADIUS_255:g}/255": half.mean(), "chance": chance},
            "every image can become grey, so no classifier is robust: gradients are masked, or the steps are too few",
        )

    def _vanished_gradients(self) -> AttackCheck:
        x, labels = next(image_batches(self.few, model_device(self.model)))
        zero_gradients = has_zero_gradient(self._forward, x, labels).float().mean().item()
        return self._check(
            "gradients vanish for few images",
            zero_gradients <= MAX_ZERO_GRADIENTS,
            {"without a gradient": zero_gradients},
            "images without a gradient count as robust: attack with apgd, whose DLR loss does not use the softmax",
        )

    def _compared(self, name: str, other: str, steps: int, sentence: str) -> AttackCheck:
        """Checks by the sign test that another attack is not stronger than the checked attack. Returns the result.

        name: name of the check. other, steps: name and number of steps of the other attack. sentence: the meaning of a
        failure. The figures in the result are two shares of images: those that the checked attack does not break, and
        those that neither attack breaks.
        The other attack first runs on the images that the checked attack does not break. If the other attack breaks so
        many of them that the test may fail, it runs on all other images too. An attack with zero gradients breaks no
        image.
        """
        remaining = self.robust.copy()
        remaining[self.robust] = self._resists(self.robust, other, steps)
        is_sound = 0.5 ** (self.robust & ~remaining).sum() >= SIGNIFICANCE
        if not is_sound:
            alone = remaining.copy()
            alone[~self.robust] = self._resists(~self.robust, other, steps)
            is_sound = sign_test(self.robust, alone) >= SIGNIFICANCE
        figures = {self._name: self.robust.mean(), f"with {attack_label(other, steps)}": remaining.mean()}
        return self._check(name, is_sound, figures, sentence)

    def _resists(self, chosen: NDArray[np.bool_], attack: str, steps: int) -> NDArray[np.bool_]:
        """Returns whether each chosen image is classified correctly both without and under the attack `attack`.

        chosen: bool (n,). The result has one value for each True in `chosen`.
        """
        if not chosen.any():
            return np.empty(0, dtype=np.bool_)
        few = Images(self.few.pixels[chosen], self.few.labels[chosen])
        try:
            return self._robust_under(attack, steps, few=few)
        except ZeroGradientError:
            return self._robust_under(attack, steps, few=few, radius_255=0)

    def _check(self, name: str, has_passed: bool, figures: Mapping[str, float], sentence: str) -> AttackCheck:
        return AttackCheck(
            name=name,
            beta=self.beta,
            norm=self.norm,
            n=len(self.few),
            has_passed=has_passed,
            figures=dict(figures),
            sentence=sentence,
        )

    def _robust_under(
        self, attack: str, steps: int, *, few: Images | None = None, radius_255: float | None = None
    ) -> NDArray[np.bool_]:
        return run_attack(
            self._forward,
            few or self.few,
            device=model_device(self.model),
            attack=attack,
            epsilon_255=self.epsilon_255 if radius_255 is None else radius_255,
            steps=steps,
            seed=self.seed,
            norm=self.norm,
        ).robust

    @property
    def _name(self) -> str:
        return attack_label(self.attack, self.steps)

    @property
    def _forward(self) -> Forward:
        return forward_at_beta(self.model, self.beta)

    @torch.no_grad()
    def _classes(self) -> int:
        x, _ = next(image_batches(self.few, model_device(self.model)))
        return self._forward(x[:1]).shape[1]
