"""The errors of training and evaluation. After each of them the caller must act.

TureenError
└── TrainingError                    base class
    ├── RecipeError                  a recipe, or a value in it, is wrong
    ├── DataError                    the images are missing, have no labels, or are too few
    ├── CheckpointError              a checkpoint is missing, unfinished, damaged or of another shape
    ├── LoggerError                  a logger is not installed, or cannot record the run
    ├── DivergedError                the loss or the logits are NaN or infinite
    ├── OverfittingError             catastrophic overfitting: the model is robust only against attacks of few steps
    └── ZeroGradientError            the gradient is zero, so the attack cannot move and its result has no meaning
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


class LoggerError(TrainingError):
    pass


class DivergedError(TrainingError):
    pass


class OverfittingError(TrainingError):
    pass


class ZeroGradientError(TrainingError):
    pass
