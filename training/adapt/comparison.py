"""Compares learned tokens with the best β, each on the images that were left out when it was chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from training.adapt.cross_validation import FOLDS, CrossValidation
from training.adapt.learning import FrozenModel, LearningSettings, token_forward
from training.attacks.catalogue import suitable_attack
from training.attacks.names import attack_label
from training.evaluation.accuracy import run_attack, sign_test, wilson_interval
from training.evaluation.tune import SIGNIFICANCE
from tureen.bundle.token_file import TokenAccuracy

ATTACK = "apgd"
ATTACK_STEPS = 20
FEW_IMAGES = 20  # fewer are attacked with fewer steps: their interval is too wide for a difference of some points
STEPS_FOR_FEW_IMAGES = 5
MAX_ATTACKED = 100
ATTACK_STREAM = 1000  # of random numbers, above those of the cross-validation


def compare(frozen: FrozenModel, validation: CrossValidation) -> TokenAccuracy:
    """Returns the accuracy of the learned tokens and of the best β without an attack, on all images."""
    token, beta = np.zeros((2, len(frozen.images)), np.bool_)
    for fold, run in enumerate(validation.runs):
        rows = validation.rows(fold)
        token[rows] = frozen.correct(rows, torch.tensor(run.token, device=frozen.device))
        beta[rows] = frozen.correct(rows, frozen.model.soup(run.start))
    return accuracy_of(token, beta)


def compare_under_attack(
    frozen: FrozenModel,
    validation: CrossValidation,
    settings: LearningSettings,
    epsilon_255: float,
    on_attack: Callable[[], None],
) -> TokenAccuracy:
    """Returns the robust accuracy of the learned tokens and of the best β, each attacked by itself.

    The attack is Auto-PGD on the cross-entropy, then on the targeted DLR. epsilon_255: its radius under l∞, in 1/255.
    If the tokens were learned without an attack, attacks at most MAX_ATTACKED random images. on_attack: called after
    each of 2 · FOLDS attacks.
    """
    attack = suitable_attack(ATTACK, frozen.model.config.classes)
    n = len(frozen.images)
    steps = ATTACK_STEPS if n >= FEW_IMAGES else STEPS_FOR_FEW_IMAGES
    attacked = settings.generator(ATTACK_STREAM).permutation(n)[: n if settings.epsilon_255 else MAX_ATTACKED]
    outcomes: list[NDArray[np.bool_]] = []
    for fold in range(FOLDS):
        rows = np.intersect1d(validation.rows(fold), attacked)
        run = validation.runs[fold]
        pair = []
        for token in (torch.tensor(run.token, device=frozen.device), frozen.model.soup(run.start)):
            if len(rows):
                outcome = run_attack(
                    token_forward(frozen.model, token),
                    frozen.subset(rows),
                    device=frozen.device,
                    attack=attack,
                    epsilon_255=epsilon_255,
                    steps=steps,
                    seed=settings.seed,
                )
                pair.append(outcome.robust)
            on_attack()
        if pair:
            outcomes.append(np.stack(pair))
    token_robust, beta_robust = np.concatenate(outcomes, axis=1)
    return accuracy_of(token_robust, beta_robust, attack_label(attack, steps), epsilon_255)


def accuracy_of(
    token: NDArray[np.bool_], best_beta: NDArray[np.bool_], attack: str | None = None, epsilon_255: float = 0.0
) -> TokenAccuracy:
    """Returns the comparison of two settings. token, best_beta: whether each of n images is right, bool (n,)."""
    n = len(token)
    return TokenAccuracy(
        n=n,
        token=wilson_interval(int(token.sum()), n),
        best_beta=wilson_interval(int(best_beta.sum()), n),
        wins=int((token & ~best_beta).sum()),
        losses=int((best_beta & ~token).sum()),
        p_value=sign_test(token, best_beta),
        attack=attack,
        epsilon_255=epsilon_255,
    )


def has_won(accuracy: TokenAccuracy) -> bool:
    """Returns whether the token is significantly better than the best β, by a one-sided sign test at the 5 % level."""
    return accuracy.p_value < SIGNIFICANCE
