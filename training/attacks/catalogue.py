"""Finds an attack by its name, as in `tureen evaluate --attack`. Replaces an attack that needs more classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from training.attacks.apgd import DLR_CLASSES, TARGETED_DLR_CLASSES, TARGETS, apgd, apgd_both, apgd_margin
from training.attacks.gradient import Forward, fgsm, mi_fgsm, pgd
from training.errors import RecipeError
from tureen.bundle.manifest import Norm
from tureen.errors import did_you_mean

OTHER_NORM_PARTS: Mapping[str, tuple[str, ...] | None] = {"apgd": ("apgd-ce", "apgd-t"), "autoattack": None}
"""The parts of AutoAttack that each attack under l2 and l1 runs, by the name of the attack; None: all parts."""
NEED_TARGETED_DLR = ("apgd-t", "autoattack")


class Attack(Protocol):
    """The interface of an attack in an evaluation: a function that returns adversarial images.

    The module `training.attacks.gradient` describes the arguments.
    """

    def __call__(
        self,
        forward: Forward,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        steps: int,
        generator: torch.Generator | None,
    ) -> Tensor: ...


def _from_package(name: str, **options: Any) -> Attack:
    """Returns an attack that calls the function `name` of `training.attacks.autoattack`, with `options` in addition.

    Each call of the attack imports that module, because an import at the start of the program would be slow.
    """

    def attack(forward: Forward, images: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        function = getattr(import_module("training.attacks.autoattack"), name)
        adversarial: Tensor = function(forward, images, labels, **arguments, **options)
        return adversarial

    return attack


# The step of PGD, 2.5 · ε / steps, is that of Madry et al., ICLR 2018, appendix.
ATTACKS: Mapping[str, Attack] = {
    "fgsm": lambda forward, images, labels, *, epsilon, steps, generator: fgsm(
        forward, images, labels, epsilon=epsilon
    ),
    "pgd": lambda forward, images, labels, *, epsilon, steps, generator: pgd(
        forward, images, labels, epsilon=epsilon, steps=steps, step_size=2.5 * epsilon / steps, generator=generator
    ),
    "mi-fgsm": lambda forward, images, labels, *, epsilon, steps, generator: mi_fgsm(
        forward, images, labels, epsilon=epsilon, steps=steps
    ),
    "apgd-ce": apgd,
    "apgd-t": partial(apgd, loss="dlr-targeted"),
    "apgd": apgd_both,
    "apgd-dlr": partial(apgd_both, second="dlr"),
    "apgd-margin": apgd_margin,
    "square": _from_package("square"),
    "autoattack": _from_package("autoattack"),
}


def find_attack(name: str, norm: Norm = "linf") -> Attack:
    """Returns the attack `name` under `norm`. Raises RecipeError if there is no such attack.

    Under l2 and l1 there are only "apgd" and "autoattack". The package `pyautoattack` runs both.
    """
    if name not in ATTACKS:
        raise RecipeError(f"there is no attack {name!r}: choose {', '.join(ATTACKS)}{did_you_mean(name, ATTACKS)}")
    if norm == "linf":
        return ATTACKS[name]
    if name not in OTHER_NORM_PARTS:
        raise RecipeError(f"{name} is an attack under l∞: for {norm} choose {' or '.join(OTHER_NORM_PARTS)}")
    return _from_package("autoattack", norm=norm, parts=OTHER_NORM_PARTS[name])


def suitable_attack(name: str, classes: int) -> str:
    """Returns the name of the attack to run: `name`, or a replacement if there are too few classes for it.

    Below four classes, "apgd" becomes "apgd-dlr", because the targeted DLR loss is not defined. Below three classes,
    "apgd" and "apgd-dlr" become "apgd-ce", because the DLR loss is not defined. Raises RecipeError for an unknown
    attack, and for "apgd-t" and "autoattack" below four classes.
    """
    find_attack(name)
    if name in NEED_TARGETED_DLR and classes < TARGETED_DLR_CLASSES:
        raise RecipeError(f"{name} needs {TARGETED_DLR_CLASSES} classes, there are {classes}: attack with apgd")
    if name == "apgd" and classes < TARGETED_DLR_CLASSES:
        name = "apgd-dlr"
    return "apgd-ce" if name == "apgd-dlr" and classes < DLR_CLASSES else name


def max_gradients(name: str, steps: int, classes: int) -> int | None:
    """Returns the largest number of gradients that an attack under l∞ computes for an image; None if it is unknown.

    It is unknown for attacks that are not repeated gradient steps. Most images need fewer gradients, because an attack
    ends for an image that is misclassified.
    """
    targets = min(TARGETS, classes - 1)
    runs = {
        "pgd": 1,
        "mi-fgsm": 1,
        "apgd-ce": 1,
        "apgd-t": targets,
        "apgd": 1 + targets,
        "apgd-dlr": 2,
        "apgd-margin": 2,
    }
    return 1 if name == "fgsm" else steps * runs[name] if name in runs else None


def substitution_message(name: str, chosen: str, classes: int) -> str:
    """Returns a message for the user: `suitable_attack` replaced the attack `name` by `chosen`, and why."""
    return f"{name} needs more than {classes} classes: attacking with {chosen} instead"
