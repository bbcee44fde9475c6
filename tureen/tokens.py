"""Mixes the tokens of a model, and parses β, strength and the text of a mix.

β is the weight of the robust token: 0 is the clean mode, 1 the robust mode. A mix is a weighted sum of any tokens by
name, such as "clean:0.2,robust:0.5,fog:0.3". Knows nothing about models, images or servers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tureen.errors import ArgumentError, InvalidBetaError, InvalidMixError, InvalidStrengthError, UnknownTokenError

CLEAN_BETA = 0.0
ROBUST_BETA = 1.0
CLEAN: Final = "clean"
ROBUST: Final = "robust"
MODE_BETAS = {CLEAN: CLEAN_BETA, ROBUST: ROBUST_BETA}
TOKEN_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,62}"  # noqa: S105 - not a password
MAX_MIX_TOKENS: Final = 8  # in one mix
MAX_WEIGHT: Final = 100.0

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


def token_rows(
    clean: NDArray[np.float32],
    robust: NDArray[np.float32],
    betas: Sequence[float | NDArray[np.float32]] | NDArray[np.float32],
    count: int,
) -> NDArray[np.float32]:
    """Returns the tokens of a batch, float32 (count, D).

    clean, robust: float32 (D,). betas: for each image a β in [0, 1], or a token, float32 (D,). Raises InvalidBetaError
    for a β that is not a number in [0, 1]. Raises ArgumentError if there are not `count` β, or if a token has another
    dtype or shape.
    """
    vectors: dict[int, NDArray[np.float32]] = {}
    if isinstance(betas, list | tuple):
        vectors = {row: choice for row, choice in enumerate(betas) if isinstance(choice, np.ndarray) and choice.ndim}
    if vectors:
        betas = [CLEAN_BETA if row in vectors else beta for row, beta in enumerate(betas)]
    tokens = mix_rows(clean, robust, _beta_column(betas, count))
    for row, vector in vectors.items():
        if vector.dtype != np.float32 or vector.shape != clean.shape:
            raise ArgumentError(
                f"the token of image {row} is {vector.dtype} {vector.shape}: give float32 {clean.shape}"
            )
        tokens[row] = vector
    return tokens


def _beta_column(betas: Any, count: int) -> NDArray[np.float32]:
    """Returns the β as an array, float32 (count,).

    Raises ArgumentError if there are not `count` β, and InvalidBetaError for a β that is not a number in [0, 1].
    """
    try:
        column = np.asarray(betas, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidBetaError(betas) from None
    if column.shape != (count,):
        raise ArgumentError(f"{count} images and β of shape {column.shape}: give one β for each image")
    is_beta = (column >= CLEAN_BETA) & (column <= ROBUST_BETA)
    if not is_beta.all():
        raise InvalidBetaError(betas[int(np.argmin(is_beta))])
    return column


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
    share = _number(value)
    if not 0 <= share <= 1:
        raise error(value)
    return share + 0.0


def _number(value: Any) -> float:
    """Returns the number that `value` gives: a number or its decimal text. Returns NaN for any other value."""
    # float() also accepts True, "1_0" and non-ASCII digits, none of which is plausible.
    is_implausible = isinstance(value, str) and (not value.strip().isascii() or "_" in value)
    if isinstance(value, bool) or is_implausible:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


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


@dataclass(frozen=True)
class Mix:
    """A weighted sum of tokens that is not a β.

    weights: pairs of a token's name and its weight, above 0. Each name occurs once, in alphabetical order.
    """

    weights: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """The text that `parse_mix` reads."""
        return ",".join(f"{name}:{weight!r}" for name, weight in self.weights)

    @property
    def beta(self) -> float:
        """The share of the robust token in the sum of the weights, in [0, 1]. An operator's bounds of β limit it."""
        return dict(self.weights).get(ROBUST, 0.0) / sum(weight for _, weight in self.weights)

    @property
    def is_normalized(self) -> bool:
        """Whether the weights sum to 1."""
        return math.isclose(math.fsum(weight for _, weight in self.weights), 1, abs_tol=1e-6)

    def check_names(self, known: Collection[str]) -> None:
        """Raises UnknownTokenError if a token of the mix is not among the names `known`."""
        for name, _ in self.weights:
            if name not in known:
                raise UnknownTokenError(name, known)

    def vector(self, tokens: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Returns the weighted sum of the tokens, float32 (D,).

        tokens: vectors by name, each float32 (D,). Raises UnknownTokenError if a token of the mix is not among them.
        """
        self.check_names(tokens)
        total = np.zeros_like(next(iter(tokens.values())))
        for name, weight in self.weights:
            total += np.float32(weight) * tokens[name]
        return total


def parse_mix(value: str | Mapping[str, float], *, normalize: bool = True) -> float | Mix:
    """Returns the mix that `value` gives. If it is a mix of clean and robust alone whose weights sum to 1, returns a β.

    value: a text such as "clean:0.2,fog:0.8", or the weights by name. A weight is a number from 0 to MAX_WEIGHT. Tokens
    of weight 0 are left out. normalize: whether to divide the weights by their sum. The tokens need not exist.

    Raises InvalidMixError if the text has another form, if a name or a weight is not valid, if a name occurs twice, if
    there are more than MAX_MIX_TOKENS tokens, or if all weights are 0.
    """
    if not isinstance(value, str | Mapping):
        raise InvalidMixError(
            f"{str(value)[:40]!r} is no mix: give a text such as clean:0.2,fog:0.8, or weights by name"
        )
    pairs = _parse_pairs(value) if isinstance(value, str) else list(value.items())
    if len(pairs) > MAX_MIX_TOKENS:
        raise InvalidMixError(f"the mix has {len(pairs):,} tokens: give at most {MAX_MIX_TOKENS}")
    weights: dict[str, float] = {}
    for name, weight in pairs:
        if not isinstance(name, str) or not re.fullmatch(TOKEN_NAME, name):
            raise InvalidMixError(f"{str(name)[:40]!r} cannot be the name of a token: it has a-z, 0-9, - and _")
        if name in weights:
            raise InvalidMixError(f"the mix has the token {name!r} twice")
        weights[name] = _parse_weight(name, weight)
    return _normal_form(weights, normalize)


@dataclass(frozen=True)
class TokenChoice:
    """A token by name, mixed with the robust token. share: β or strength of the mix; None: the token alone.

    A strength becomes a β only with the curve of a model.
    """

    name: str
    share: float | Strength | None = None


GivenChoice = float | Strength | Mix | TokenChoice  # what a request may give for an image; a float is a β


def token_mix(name: str, beta: float = CLEAN_BETA) -> float | Mix:
    """Returns the mix (1 − β)·token + β·robust for the token of this name. For "clean" this is the β itself.

    beta: in [0, 1]. Raises InvalidMixError if `name` cannot be the name of a token.
    """
    if name == ROBUST:
        return ROBUST_BETA
    return parse_mix({name: 1 - beta, ROBUST: beta})


def move_to_robust(choice: float | Mix, beta: float) -> float | Mix:
    """Returns (1 − β)·choice + β·robust. choice: a β, or a mix whose weights sum to 1. beta: in [0, 1]."""
    weights = dict(choice.weights) if isinstance(choice, Mix) else {CLEAN: 1 - choice, ROBUST: choice}
    moved = {name: (1 - beta) * weight for name, weight in weights.items()}
    return _normal_form({**moved, ROBUST: moved.get(ROBUST, 0.0) + beta}, normalize=True)


def _parse_pairs(text: str) -> list[tuple[str, str]]:
    if text.count(",") >= MAX_MIX_TOKENS:  # before a text of a million tokens is split
        raise InvalidMixError(f"the mix has {text.count(',') + 1:,} tokens: give at most {MAX_MIX_TOKENS}")
    pairs = []
    for part in text.split(","):
        name, separator, weight = part.partition(":")
        if not separator:
            raise InvalidMixError(f"{part[:40]!r} is not a token with its weight: give a mix such as clean:0.2,fog:0.8")
        pairs.append((name.strip(), weight))
    return pairs


def _parse_weight(name: str, value: Any) -> float:
    weight = _number(value)
    if not 0 <= weight <= MAX_WEIGHT:
        raise InvalidMixError(f"the weight of {name} is {str(value)[:40]!r}: give a number from 0 to {MAX_WEIGHT:g}")
    return weight + 0.0


def _normal_form(weights: Mapping[str, float], normalize: bool) -> float | Mix:
    total = math.fsum(weights.values())
    if total == 0:
        raise InvalidMixError("all weights of the mix are 0: give one above 0")
    shares = {name: weight / total if normalize else weight for name, weight in sorted(weights.items()) if weight}
    if set(shares) <= {CLEAN, ROBUST} and math.isclose(math.fsum(shares.values()), 1, abs_tol=1e-9):
        return shares.get(ROBUST, 0.0)
    return Mix(tuple(shares.items()))
