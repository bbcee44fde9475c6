"""Measures accuracy at each β under common corruptions and distribution shifts, without an attack.

The model is a function of pixels and β, from a checkpoint or a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from training.data.datasets import Images
from training.evaluation.accuracy import Predict, correct_by_beta
from training.evaluation.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES, corrupt
from training.evaluation.shifts import SHIFTS
from tureen.bundle.manifest import SHIFT, ShiftRow


def evaluate_shifts(
    predict: Predict,
    images: Images,
    *,
    betas: Sequence[float],
    names: Iterable[str] = (*CORRUPTIONS, *SHIFTS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    on_images: Callable[[], None] = lambda: None,
) -> list[ShiftRow]:
    """Returns a row for each corruption or shift in `names` and each β. A row has the accuracy at each severity.

    predict: computes logits from pixels and one β for each image. Every β is measured on the same corrupted images.
    on_images: called after each pair of name and severity. Raises RecipeError for an unknown name or severity, and
    DivergedError if logits are not finite.
    """
    families = {name: family for family, members in FAMILIES.items() for name in members}
    rows = []
    for name in names:
        by_beta: list[dict[int, float]] = [{} for _ in betas]
        for severity in severities:
            corrupted = Images(corrupt(images.pixels, name, severity, seed), images.labels)
            for accuracy, correct in zip(by_beta, correct_by_beta(predict, corrupted, betas), strict=True):
                accuracy[severity] = float(correct.mean())
            on_images()
        rows += [
            ShiftRow(name=name, family=families.get(name, SHIFT), beta=beta, n=len(images), accuracy=accuracy)
            for beta, accuracy in zip(betas, by_beta, strict=True)
        ]
    return rows
