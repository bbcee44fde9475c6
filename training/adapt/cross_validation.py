"""Chooses the number of learning steps by nested cross-validation, and evaluates token and best β on images left out.

The images are in five folds. A token is learned without each pair of folds {a, b}. Its scores on fold a help to choose
the number of steps for fold b, and its scores on fold b help to choose it for fold a. Then a token for each fold is
learned from all other folds. So the images of a fold choose neither the token, the number of steps nor the β that
classify them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from training.adapt.learning import (
    LEARNING_ATTACK,
    FrozenModel,
    LearningSettings,
    Rows,
    Score,
    learn_token,
    token_forward,
)
from training.evaluation.accuracy import run_attack
from training.evaluation.tune import best_index

FOLDS = 5
PAIRS = tuple(combinations(range(FOLDS), 2))
RUNS = len(PAIRS) + FOLDS
BETA_ATTACK_STEPS = 10
FOLD_STREAM = FOLDS * FOLDS  # numbers of streams of random numbers: a pair {a, b} has a · FOLDS + b
ALL_STREAM = FOLD_STREAM + FOLDS
SCORE_STREAM = ALL_STREAM + 1
SPLIT_STREAM = SCORE_STREAM + FOLDS


class _Run(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PairRun(_Run):
    """The scores of a token that was learned without the folds a < b.

    first: on the images of fold a, at each checkpoint. second: on those of fold b.
    """

    first: list[Score]
    second: list[Score]


class FoldRun(_Run):
    """A token that was learned without one fold. start: the β that is best without this fold, and the first token.

    steps: number of steps. token: D numbers.
    """

    start: float
    steps: int
    token: list[float]


class FinishedRuns(_Run):
    """The finished runs of a cross-validation. pairs: by the text "a,b". folds: by number, as text."""

    pairs: dict[str, PairRun] = {}
    folds: dict[str, FoldRun] = {}

    @property
    def count(self) -> int:
        return len(self.pairs) + len(self.folds)


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation of n images.

    folds: number of the fold of each image, int64 (n,). runs: of each fold. steps: the number of steps for a token that
    is learned from all images. start: the β that is best on all images.
    """

    folds: NDArray[np.int64]
    runs: list[FoldRun]
    steps: int
    start: float

    def rows(self, fold: int) -> Rows:
        """Returns the indices of the images of a fold."""
        return np.flatnonzero(self.folds == fold)


def cross_validate(
    frozen: FrozenModel,
    betas: list[float],
    settings: LearningSettings,
    finished: FinishedRuns,
    on_run: Callable[[FinishedRuns], None],
) -> CrossValidation:
    """Returns the cross-validation of all images of `frozen`.

    betas: to choose the first token from. finished: runs that are not repeated. on_run: called after each run with all
    finished runs. Raises DivergedError if a loss or logits are not finite.
    """
    folds = split_folds(frozen.images.labels, settings)
    correct = correct_by_start(frozen, betas, settings)

    def start(rows: Rows) -> float:
        return betas[best_index(correct[:, rows].sum(axis=1, dtype=np.int64))]

    for pair in PAIRS:
        if _key(pair) not in finished.pairs:
            run = _run_pair(frozen, folds, pair, start, settings)
            finished = finished.model_copy(update={"pairs": {**finished.pairs, _key(pair): run}})
            on_run(finished)
    for fold in range(FOLDS):
        if str(fold) not in finished.folds:
            rows = np.flatnonzero(folds != fold)
            scores = [_scores_on(finished.pairs, other, fold) for other in range(FOLDS) if other != fold]
            beta, steps = start(rows), best_checkpoint(scores, settings)
            token = token_after(frozen, rows, beta, settings, steps=steps, stream=FOLD_STREAM + fold)
            run_of_fold = FoldRun(start=beta, steps=steps, token=token.tolist())
            finished = finished.model_copy(update={"folds": {**finished.folds, str(fold): run_of_fold}})
            on_run(finished)
    scores = [scores for run in finished.pairs.values() for scores in (run.first, run.second)]
    return CrossValidation(
        folds=folds,
        runs=[finished.folds[str(fold)] for fold in range(FOLDS)],
        steps=best_checkpoint(scores, settings),
        start=start(np.arange(len(folds))),
    )


def token_after(
    frozen: FrozenModel, rows: Rows, beta: float, settings: LearningSettings, *, steps: int, stream: int = ALL_STREAM
) -> Tensor:
    """Returns the token (D,) after `steps` steps of learning from the images of the rows, from the soup at `beta`."""
    *_, (_, token) = learn_token(frozen, rows, frozen.model.soup(beta), replace(settings, steps=steps), stream=stream)
    return token


def split_folds(labels: NDArray[np.int64], settings: LearningSettings) -> NDArray[np.int64]:
    """Returns the number of the fold of each of n images, int64 (n,).

    The sizes of the folds differ by at most one, and so do the numbers of images of one class in them.
    """
    order = settings.generator(SPLIT_STREAM).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def correct_by_start(frozen: FrozenModel, betas: list[float], settings: LearningSettings) -> NDArray[np.bool_]:
    """Returns whether each image is classified correctly at each β, bool (number of β, n).

    With `settings.epsilon_255`, also under an attack on the soup at this β.
    """
    tokens = [frozen.model.soup(beta) for beta in betas]
    if not settings.epsilon_255:
        return np.stack([frozen.correct(np.arange(len(frozen.images)), token) for token in tokens])
    outcomes = [
        run_attack(
            token_forward(frozen.model, token),
            frozen.images,
            device=frozen.device,
            attack=LEARNING_ATTACK,
            epsilon_255=settings.epsilon_255,
            steps=BETA_ATTACK_STEPS,
            seed=settings.seed,
        )
        for token in tokens
    ]
    return np.stack([outcome.robust for outcome in outcomes])


def best_checkpoint(scores: list[list[Score]], settings: LearningSettings) -> int:
    """Returns the number of steps at which most images are classified correctly; of several, that of the lowest loss.

    scores: each list has a score for each checkpoint. The log-loss alone would prefer a token with less confident
    predictions, correct or not.
    """
    sums = [
        (-sum(one.right for one in column), sum(one.loss for one in column)) for column in zip(*scores, strict=True)
    ]
    return settings.checkpoints[sums.index(min(sums))]


def _run_pair(
    frozen: FrozenModel,
    folds: NDArray[np.int64],
    pair: tuple[int, int],
    start: Callable[[Rows], float],
    settings: LearningSettings,
) -> PairRun:
    rows = np.flatnonzero(~np.isin(folds, pair))
    scores: dict[int, list[Score]] = {fold: [] for fold in pair}
    stream = pair[0] * FOLDS + pair[1]
    for _, token in learn_token(frozen, rows, frozen.model.soup(start(rows)), settings, stream=stream):
        for fold in pair:
            # The same random numbers at each checkpoint, so that the scores differ by the token alone.
            scores[fold].append(frozen.score(np.flatnonzero(folds == fold), token, settings, SCORE_STREAM + fold))
    return PairRun(first=scores[pair[0]], second=scores[pair[1]])


def _scores_on(pairs: Mapping[str, PairRun], fold: int, left_out: int) -> list[Score]:
    """Returns the scores on `fold` of the token that was learned without `fold` and `left_out`."""
    run = pairs[_key((min(fold, left_out), max(fold, left_out)))]
    return run.first if fold < left_out else run.second


def _key(pair: tuple[int, int]) -> str:
    return f"{pair[0]},{pair[1]}"
