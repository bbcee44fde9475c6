"""Mixes the clean and the robust token of a model, and parses β and strength.

β is the weight of the robust token: 0 is the clean mode, 1 the robust mode. Knows nothing about models, images or
servers.
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
    """A strength: a number in [0, 1] that chooses a mode, as β does. 0 is the clean mode, 1 the robust mode.

    Equal steps of strength move the logits equally far. A curve in the manifest of each model maps strength to β.
    """

    value: float


def mix(clean: Vector, robust: Vector, beta: Vector | float) -> Vector:
    """Returns the soup token (1 − β)·clean + β·robust. At β = 0 it equals the clean token, at β = 1 the robust token.

    clean, robust: NumPy arrays or torch tensors, (D,) or (B, D). beta: a number, or an array that broadcasts to the
    tokens, such as (B, 1). β may be outside [0, 1], because this function does not check it.

    Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 1c.
    """
    return (1 - beta) * clean + beta * robust  # type: ignore[operator,return-value]


def mix_rows(clean: NDArray[np.float32], robust: NDArray[np.float32], betas: ArrayLike) -> NDArray[np.float32]:
    """Returns the soup tokens of a batch, float32 (B, D). Token b is the mix at betas[b].

    clean, robust: float32 (D,). betas: (B,), one β for each image, not checked.
    """
    column = np.asarray(betas, dtype=np.float32).reshape(-1, 1)
    return mix(clean[None, :], robust[None, :], column)


def parse_beta(value: str | float) -> float:
    """Returns the β that `value` gives, in [0, 1].

    value: a number in [0, 1], its decimal text, or a mode: "clean" is 0, "robust" is 1. −0.0 becomes 0.0. Raises
    InvalidBetaError for any other value, such as NaN.
    """
    if isinstance(value, str) and value.strip() in MODE_BETAS:
        return MODE_BETAS[value.strip()]
    return _parse_share(value, InvalidBetaError)


def parse_strength(value: str | float) -> Strength:
    """Returns the strength that `value` gives: a number in [0, 1], or its decimal text. −0.0 becomes 0.0.

    Raises InvalidStrengthError for any other value, such as "robust" or NaN.
    """
    return Strength(_parse_share(value, InvalidStrengthError))


def _parse_share(value: str | float, error: type[InvalidBetaError | InvalidStrengthError]) -> float:
    """Returns the number that `value` gives: a number in [0, 1], or its decimal text. −0.0 becomes 0.0.

    error: the class of the exception for any other value.
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
    """Returns the β that a text lists: "start:stop:step", or values such as "0,0.5,robust".

    A range includes `stop` if a step reaches it. Raises InvalidBetaError for another form, a value outside [0, 1], a
    stop below the start, a step of 0, or a range of more than 1,001 β.
    """
    return _grid(text, parse_beta, InvalidBetaError)


def strength_grid(text: str) -> list[Strength]:
    """Returns the strengths that a text lists: "start:stop:step", or values such as "0,0.5".

    A range includes `stop` if a step reaches it. Raises InvalidStrengthError for another form, a value outside [0, 1],
    a stop below the start, a step of 0, or a range of more than 1,001 strengths.
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
