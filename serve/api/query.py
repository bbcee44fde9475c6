"""Parses the query parameters of /classify and /sweep. Knows nothing about bodies and images.

An unknown parameter is an error, because a misspelt `beta` must not be ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import QueryParams

from serve.errors import InvalidParameterError
from serve.settings import Settings
from tureen.soup import DEFAULT_SWEEP, DEFAULT_TOP_K
from tureen.tokens import (
    GivenChoice,
    Strength,
    TokenChoice,
    beta_grid,
    parse_beta,
    parse_mix,
    parse_strength,
    strength_grid,
)

CACHED_QUERIES = 256  # the latest queries, of each route: clients repeat theirs
CACHED_QUERY_BYTES = 256  # a longer query is parsed each time

CHOICES = ("beta", "strength", "token", "mix", "policy")
EXCLUSIVE = (("beta", "strength", "mix", "policy"), ("token", "mix", "policy"), ("betas", "strengths"))


@dataclass(frozen=True)
class QueryParameters:
    """The parameters of a query. A parameter that the query does not give has its default value."""

    choice: GivenChoice | None  # parameters beta, strength, token and mix; None: the query has none of them
    policy: str | None  # name of a policy in the operator's settings; None: the query has none
    betas: list[float] | list[Strength]  # parameter betas or strengths of /sweep; ascending, without duplicates
    top_k: int  # number of labels in the response, for each image
    timeout_ms: int  # deadline of the request


class QueryCache:
    """Parses the query strings of one route, and keeps the latest results."""

    def __init__(self, parse: Callable[[QueryParams, Settings], QueryParameters], settings: Settings) -> None:
        """parse: parses a query, or raises an error. An error is not kept."""
        self._parse, self._settings = parse, settings
        self._parse_cached = lru_cache(CACHED_QUERIES)(self._parse_new)

    def parse(self, query: bytes) -> QueryParameters:
        """Returns the parameters of a query string. Raises the errors of `parse`."""
        return self._parse_cached(query) if len(query) <= CACHED_QUERY_BYTES else self._parse_new(query)

    def _parse_new(self, query: bytes) -> QueryParameters:
        return self._parse(QueryParams(query), self._settings)


def classify_parameters(query: QueryParams, settings: Settings) -> QueryParameters:
    """Returns the query parameters of /classify: those of the choice, and top_k and timeout_ms.

    The choice is beta, strength, mix or policy, or a token with or without beta or strength. A mix may come with
    normalize. settings: has the default of timeout_ms, and the maximum of top_k and timeout_ms. Raises
    InvalidBetaError, InvalidStrengthError or InvalidMixError for a value that is not valid. Raises
    InvalidParameterError for an unknown or repeated parameter, for a top_k or timeout_ms out of range, and for
    parameters that exclude each other.
    """
    return _parse(query, (*CHOICES, "normalize", "top_k", "timeout_ms"), settings)


def sweep_parameters(query: QueryParams, settings: Settings) -> QueryParameters:
    """Returns the query parameters of /sweep: betas or strengths, and top_k and timeout_ms.

    settings: has the default of timeout_ms, and the maximum of top_k, of timeout_ms and of the number of β. Raises
    InvalidBetaError or InvalidStrengthError for an invalid list of values. Raises InvalidParameterError for an unknown
    or repeated parameter, for a top_k or timeout_ms out of range, for too many values, and for both betas and
    strengths.
    """
    return _parse(query, ("betas", "strengths", "top_k", "timeout_ms"), settings)


def _parse(query: QueryParams, names: tuple[str, ...], settings: Settings) -> QueryParameters:
    values: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in names:
            raise InvalidParameterError(f"there is no parameter {name[:40]!r}: use {', '.join(names)}")
        if name in values:
            raise InvalidParameterError(f"the parameter {name} is given more than once")
        values[name] = value
    for exclusive in EXCLUSIVE:
        given = [name for name in exclusive if name in values]
        if len(given) > 1:
            raise InvalidParameterError(f"the parameters {' and '.join(given)} exclude each other: give one of them")
    return QueryParameters(
        choice=_parse_choice(values),
        policy=values.get("policy"),
        betas=_parse_betas(values, settings.max_sweep_betas),
        top_k=_parse_whole_number("top_k", values.get("top_k", str(DEFAULT_TOP_K)), settings.max_top_k),
        timeout_ms=_parse_whole_number(
            "timeout_ms", values.get("timeout_ms", str(settings.timeout_ms)), settings.timeout_ms
        ),
    )


def _parse_choice(values: dict[str, str]) -> GivenChoice | None:
    normalize = values.get("normalize")
    if normalize is not None and ("mix" not in values or normalize not in ("true", "false")):
        raise InvalidParameterError("normalize belongs to a mix: give true or false, together with mix")
    if "mix" in values:
        return parse_mix(values["mix"], normalize=normalize != "false")
    share: float | Strength | None = None
    if "strength" in values:
        share = parse_strength(values["strength"])
    elif "beta" in values:
        share = parse_beta(values["beta"])
    return TokenChoice(values["token"], share) if "token" in values else share


def _parse_betas(values: dict[str, str], maximum: int) -> list[float] | list[Strength]:
    betas: list[float] | list[Strength]
    if "strengths" in values:
        name, betas = "strengths", sorted(set(strength_grid(values["strengths"])))
    else:
        name, betas = "betas", sorted(set(beta_grid(values.get("betas", DEFAULT_SWEEP))))
    if len(betas) > maximum:
        raise InvalidParameterError(f"{name} holds {len(betas)} values: give at most {maximum}")
    return betas


def _parse_whole_number(name: str, text: str, maximum: int) -> int:
    # int() also accepts "1_0", " 1" and non-ASCII digits. The length bounds the time that int() takes.
    is_number = text.isascii() and text.isdecimal() and len(text) <= 9
    if not is_number or not 1 <= int(text) <= maximum:
        raise InvalidParameterError(f"{name} is {text[:40]!r}: give a whole number from 1 to {maximum}")
    return int(text)
