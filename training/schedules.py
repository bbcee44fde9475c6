"""Computes values from the progress of the training: learning rate, radius and steps of the attack, cost of a step."""

from __future__ import annotations

import math

from training.recipes import Recipe


def scheduled_learning_rate(recipe: Recipe, progress: float) -> float:
    """Returns the learning rate. progress: the share of the training that is finished, in [0, 1].

    The learning rate rises linearly in the warm-up, then falls to zero along half a cosine.
    """
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def scheduled_epsilon(recipe: Recipe, progress: float) -> float:
    """Returns the radius of the attack, for pixels in [0, 1]. progress: the finished share of the training, in [0, 1].

    The radius is 0 at first, then rises linearly, then stays constant. With such a schedule robust training can start
    from weights that are not robust (arXiv 2509.23325).
    """
    after = progress - recipe.epsilon_start
    ramp = min(1.0, after / recipe.epsilon_ramp) if recipe.epsilon_ramp else float(after >= 0)
    return recipe.epsilon_255 / 255 * max(0.0, ramp)


def scheduled_attack_steps(recipe: Recipe, progress: float) -> int:
    """Returns the number of PGD steps; 0 while the radius is 0. progress: finished share of the training, in [0, 1]."""
    if scheduled_epsilon(recipe, progress) == 0:
        return 0
    is_ramp = progress < recipe.epsilon_start + recipe.epsilon_ramp
    return recipe.attack_steps_in_ramp or recipe.attack_steps if is_ramp else recipe.attack_steps


def attack_phases(recipe: Recipe, steps: int) -> dict[int, range]:
    """Returns the training steps by their number of attack steps, in the order of training. 0: no attack.

    steps: number of steps of the whole training. With α = 1 no step has an attack.
    """
    phases: dict[int, range] = {}
    for step in range(steps):
        attack = 0 if recipe.alpha == 1 else scheduled_attack_steps(recipe, step / steps)
        first = phases[attack].start if attack in phases else step
        phases[attack] = range(first, step + 1)
    return phases


def loss_passes(recipe: Recipe, attack_steps: int) -> int:
    """Returns the number of passes of a batch through the model for the losses of a training step, without the attack.

    One for the clean loss, one for the robust loss, and in the objective "trades" with an attack one more for the
    images in robust mode. A loss with the weight 0 has none. attack_steps: of this training step.
    """
    if recipe.alpha == 1:
        return 1
    return (recipe.alpha > 0) + 1 + (recipe.objective == "trades" and attack_steps > 0)


def relative_cost(recipe: Recipe, first: int, last: int, steps: int) -> int:
    """Returns the number of passes through the model in the training steps `first` to `last` − 1.

    A pass is forward and backward over a batch. A training step has the passes of `loss_passes`, and one for each step
    of the attack. steps: number of steps of the whole training.
    """
    attacks = [0 if recipe.alpha == 1 else scheduled_attack_steps(recipe, step / steps) for step in range(first, last)]
    return sum(attack + loss_passes(recipe, attack) for attack in attacks)
