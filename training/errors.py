"""The errors of training and evaluation, with the party that must act.

TureenError
└── TrainingError                    caller
    ├── RecipeError                  a recipe, or a value set in it, is wrong
    ├── DataError                    the images are missing, not labelled, or not enough
    ├── CheckpointError              a checkpoint is missing, unfinished, damaged or does not fit
    ├── DivergedError                the loss or the logits are NaN or infinite
    ├── OverfittingError             catastrophic overfitting: robust against one attack step only
    └── ZeroGradientError            the attack has no gradient, so its result has no meaning
"""

from __future__ import annotations

from tureen.errors import TureenError


class TrainingError(TureenError):
    """Base class of all errors of this package."""


class RecipeError(TrainingError, ValueError):
    pass


class DataError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class DivergedError(TrainingError):
    pass


class OverfittingError(TrainingError):
    pass


class ZeroGradientError(TrainingError):
    pass
