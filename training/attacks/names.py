"""Names the attacks, for options and reports. Knows no PyTorch, so that options can be read without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ATTACK_LABELS: Final[Mapping[str, str]] = {
    "fgsm": "FGSM",
    "pgd": "PGD-{steps}",
    "mi-fgsm": "MI-FGSM-{steps}",
    "apgd-ce": "APGD-{steps} (CE)",
    "apgd-t": "APGD-{steps} (targeted DLR)",
    "apgd": "APGD-{steps} (CE, targeted DLR)",
    "apgd-dlr": "APGD-{steps} (CE, DLR)",
    "apgd-margin": "APGD-{steps} (CE, DLR, widest margin)",
    "square": "Square-{steps}",
    "autoattack": "AutoAttack standard",
}
"""The name of each attack in reports, by its name in `training.attacks.catalogue.ATTACKS`, in the same order."""


def attack_label(name: str, steps: int) -> str:
    """Returns the name of an attack for reports, such as "PGD-40". name: a key of ATTACK_LABELS."""
    return ATTACK_LABELS[name].format(steps=steps)
