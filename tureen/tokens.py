"""Mixes the clean and the robust token, and parses β and strength. Defines the formula and the direction of β.

Knows nothing about models, images or servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tureen.errors import InvalidBetaError, InvalidStrengthError

CLEAN_BETA = 0.0
ROBUST_BETA = 1.0
MODE_BETAS = {"clean": CLEAN_BETA, "robust": ROBUST_BETA}

Vector = TypeVar("Vector")


@dataclass(frozen=True, order=True)
class Strength:
    """A strength in [0, 1]. The manifest of the model maps it to β: 0 is the clean mode, 1 the robust mode."""

    value: float


def mix(clean: Vector, robust: Vector, beta: Vector | float) -> Vector:
    """Returns the soup (1 − β)·clean + β·robust; β = 0 gives exactly the clean token, β = 1 exactly the robust one.

    Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 1c.
    Works for NumPy arrays and torch tensors. The tokens are (D,) or (B, D); β is a number or broadcastable to them,
    such as (B, 1). β may lie outside [0, 1]; only `parse_beta` checks that.
    """
    return (1 - beta) * clean + beta * robust  # type: ignore[operator,return-value]


def mix_rows(clean: NDArray[np.float32], robust: NDArray[np.float32], betas: ArrayLike) -> NDArray[np.float32]:
    """Returns one soup token for each β, for a batch in which each image has its own β.

    clean, robust: float32 (D,). betas: (B,), any numbers. Returns float32 (B, D).
    """
    column = np.asarray(betas, dtype=np.float32).reshape(-1, 1)
    return mix(clean[None, :], robust[None, :], column)


def parse_beta(value: str | float) -> float:
    """Returns β in [0, 1] from a number, its decimal text, or the name of a mode: "clean" is 0, "robust" is 1.

    −0.0 becomes 0.0. Raises InvalidBetaError for anything else, including NaN and infinities.
    """
    if isinstance(value, str) and value.strip() in MODE_BETAS:
        return MODE_BETAS[value.strip()]
    return _parse_share(value, InvalidBetaError)


def parse_strength(value: str | float) -> Strength:
    """Returns the strength of a number in [0, 1] or its decimal text. Raises InvalidStrengthError for anything else."""
    return Strength(_parse_share(value, InvalidStrengthError))


def _parse_share(value: str | float, error: type[InvalidBetaError | InvalidStrengthError]) -> float:
    """Returns a number in [0, 1] from the number or its decimal text. −0.0 becomes 0.0.

    Raises an exception of the class `error` for anything else.
    """
    # float() also accepts True, "1_0", "infinity" and non-ASCII digits, none of which is plausible.
    is_implausible = isinstance(value, str) and (not value.strip().isascii() or "_" in value)
    if isinstance(value, bool) or is_implausible:
        raise error(value)
    try:
        share = float(value)
    except (TypeError, ValueError, OverflowError) as cause:
        raise error(value) from cause
    if not math.isfinite(share) or not 0 <= share <= 1:
        raise error(value)
    return share + 0.0


def beta_grid(text: str) -> list[float]:
    """Returns the β that a text lists: "start:stop:step", including both ends, or several such as "0,0.5,robust".

    Raises InvalidBetaError for a value outside [0, 1], a step that is not positive, or more than 1,001 β.
    """
    return _grid(text, parse_beta, InvalidBetaError)


def strength_grid(text: str) -> list[Strength]:
    """Returns the strengths that a text lists: "start:stop:step", including both ends, or several such as "0,0.5".

    Raises InvalidStrengthError for a value outside [0, 1], a step that is not positive, or more than 1,001 strengths.
    """
    return [Strength(value) for value in _grid(text, lambda part: parse_strength(part).value, InvalidStrengthError)]


def _grid(
    text: str, parse: Callable[[str], float], error: type[InvalidBetaError | InvalidStrengthError]
) -> list[float]:
    if ":" not in text:
        return [parse(part) for part in text.split(",")]
    parts = text.split(":")
    if len(parts) != 3:
        raise error(text)
    start, stop, step = (parse(part) for part in parts)
    if stop < start or step <= 0:
        raise error(text)
    count = math.floor((stop - start) / step + 1e-9) + 1
    if count > 1001:
        raise error(text)
    return [min(round(start + i * step, 9), 1.0) for i in range(count)]
