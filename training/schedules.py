"""Computes the learning rate, and the radius ε of the attack, from the progress of the training."""

from __future__ import annotations

import math

from training.recipes import Recipe


def scheduled_learning_rate(recipe: Recipe, progress: float) -> float:
    """Returns the learning rate at `progress` in [0, 1] of the training: linear warm-up, then half a cosine to zero."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def scheduled_epsilon(recipe: Recipe, progress: float) -> float:
    """Returns the radius of the attack on pixels in [0, 1], at `progress` in [0, 1]: a linear ramp, then constant."""
    ramp = min(1.0, progress / recipe.epsilon_ramp) if recipe.epsilon_ramp else 1.0
    return recipe.epsilon_255 / 255 * ramp
