"""Computes values from the progress of the training: learning rate, radius and steps of the attack, cost of a step."""

from __future__ import annotations

import math

from training.recipes import Recipe


def scheduled_learning_rate(recipe: Recipe, progress: float) -> float:
    """Returns the learning rate at `progress`, in [0, 1], of the training.

    It rises linearly in the warm-up, then falls to zero along half a cosine.
    """
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def scheduled_epsilon(recipe: Recipe, progress: float) -> float:
    """Returns the radius of the attack, for pixels in [0, 1], at `progress`, in [0, 1], of the training.

    The radius is 0, then rises linearly, then stays constant. Source: with such a schedule robust training can start
    from weights that are not robust (arXiv 2509.23325).
    """
    after = progress - recipe.epsilon_start
    ramp = min(1.0, after / recipe.epsilon_ramp) if recipe.epsilon_ramp else float(after >= 0)
    return recipe.epsilon_255 / 255 * max(0.0, ramp)


def scheduled_attack_steps(recipe: Recipe, progress: float) -> int:
    """Returns the number of PGD steps at `progress`, in [0, 1], of the training; 0 while the radius is 0."""
    if scheduled_epsilon(recipe, progress) == 0:
        return 0
    is_ramp = progress < recipe.epsilon_start + recipe.epsilon_ramp
    return recipe.attack_steps_in_ramp or recipe.attack_steps if is_ramp else recipe.attack_steps


def relative_cost(recipe: Recipe, first: int, last: int, steps: int) -> int:
    """Returns the cost of the training steps from `first` to before `last`, of `steps`, in passes through the model.

    A step has one pass, forward and backward, for the clean loss, one for the robust loss, and one for each step of the
    attack.
    """
    if recipe.alpha == 1:  # no robust loss
        return last - first
    losses = 1 if recipe.alpha == 0 else 2
    return sum(losses + scheduled_attack_steps(recipe, step / steps) for step in range(first, last))
