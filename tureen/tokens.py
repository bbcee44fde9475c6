"""Mixes the clean and the robust token, and parses β. Defines the formula and the direction of β for all packages.

Knows nothing about models, images or servers.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tureen.errors import InvalidBetaError

CLEAN_BETA = 0.0
ROBUST_BETA = 1.0
MODE_BETAS = {"clean": CLEAN_BETA, "robust": ROBUST_BETA}

Vector = TypeVar("Vector")


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
    if isinstance(value, bool):
        raise InvalidBetaError(value)
    if isinstance(value, str):
        text = value.strip()
        if text in MODE_BETAS:
            return MODE_BETAS[text]
        # float() also accepts "1_0", "infinity" and non-ASCII digits, none of which is a plausible β.
        if not text.isascii() or "_" in text:
            raise InvalidBetaError(value)
    try:
        beta = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidBetaError(value) from error
    if not math.isfinite(beta) or not CLEAN_BETA <= beta <= ROBUST_BETA:
        raise InvalidBetaError(value)
    return beta + 0.0


def beta_grid(text: str) -> list[float]:
    """Returns the β that a text lists: "start:stop:step", including both ends, or several such as "0,0.5,robust".

    Raises InvalidBetaError for a value outside [0, 1], a step that is not positive, or more than 1,001 β.
    """
    if ":" not in text:
        return [parse_beta(part) for part in text.split(",")]
    parts = text.split(":")
    if len(parts) != 3:
        raise InvalidBetaError(text)
    start, stop, step = (parse_beta(part) for part in parts)
    if stop < start or step <= 0:
        raise InvalidBetaError(text)
    count = math.floor((stop - start) / step + 1e-9) + 1
    if count > 1001:
        raise InvalidBetaError(text)
    return [min(round(start + i * step, 9), 1.0) for i in range(count)]
