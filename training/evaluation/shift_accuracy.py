"""Accuracy at each β under common corruptions and distribution shifts, without an attack.

Knows the corruptions by their names alone, and the model as a function of pixels and β: a checkpoint or a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from training.data.datasets import Images
from training.evaluation.accuracy import Predict, right_answers
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
    """A row for each corruption or shift of that name and each β: the accuracy at each severity.

    predict: logits of pixels and β. Every β gets the same corrupted images. on_images: called for each name and
    severity. Raises RecipeError for an unknown name or severity.
    """
    families = {name: family for family, members in FAMILIES.items() for name in members}
    rows = []
    for name in names:
        by_beta: list[dict[int, float]] = [{} for _ in betas]
        for severity in severities:
            corrupted = Images(corrupt(images.pixels, name, severity, seed), images.labels)
            for accuracy, answers in zip(by_beta, right_answers(predict, corrupted, betas), strict=True):
                accuracy[severity] = float(answers.mean())
            on_images()
        rows += [
            ShiftRow(name=name, family=families.get(name, SHIFT), beta=beta, n=len(images), accuracy=accuracy)
            for beta, accuracy in zip(betas, by_beta, strict=True)
        ]
    return rows
