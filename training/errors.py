"""What can go wrong in training and evaluation, and who must act.

TureenError
└── TrainingError                    caller
    ├── RecipeError                  a recipe, or a value set in it, is wrong
    ├── DataError                    the images are missing, not labelled, or not enough
    ├── CheckpointError              a checkpoint is missing, unfinished, damaged or of another kind
    ├── DivergedError                the loss is not a number any more
    ├── SuspectError                 robustness against one attack step rose while that against many fell
    └── ZeroGradientError            the attack has no gradient to follow, so it measures nothing
"""

from __future__ import annotations

from tureen.errors import TureenError


class TrainingError(TureenError):
    """Base of the errors of this package."""


class RecipeError(TrainingError, ValueError):
    pass


class DataError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class DivergedError(TrainingError):
    pass


class SuspectError(TrainingError):
    pass


class ZeroGradientError(TrainingError):
    pass
