"""What can go wrong in training and evaluation, and who must act.

TureenError
└── TrainingError                    caller
    ├── RecipeError                  a recipe, or a value set in it, is wrong
    ├── CheckpointError              a checkpoint is missing, unfinished, damaged or of another kind
    ├── DivergedError                the loss is not a number any more
    └── ZeroGradientError            the attack has no gradient to follow, so it measures nothing
"""

from __future__ import annotations

from tureen.errors import TureenError


class TrainingError(TureenError):
    """Base of the errors of this package."""


class RecipeError(TrainingError, ValueError):
    pass


class CheckpointError(TrainingError):
    pass


class DivergedError(TrainingError):
    pass


class ZeroGradientError(TrainingError):
    pass
