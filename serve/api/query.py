"""The query parameters: strict, since a misspelt `beta` must not silently mean the default."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import QueryParams

from serve.errors import InvalidParameterError
from serve.settings import Settings
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import beta_grid, parse_beta

DEFAULT_SWEEP = "0:1:0.1"


@dataclass(frozen=True)
class Parameters:
    """What a query says, defaults filled in; beta None: not given. betas: of a sweep alone."""

    beta: float | None
    policy: str | None
    betas: list[float]
    top_k: int
    timeout_ms: int


def classify_parameters(query: QueryParams, settings: Settings) -> Parameters:
    """beta or policy, top_k and timeout_ms; raises InvalidBetaError or InvalidParameterError."""
    return _parameters(query, ("beta", "policy", "top_k", "timeout_ms"), settings)


def sweep_parameters(query: QueryParams, settings: Settings) -> Parameters:
    """betas, top_k and timeout_ms; raises InvalidBetaError or InvalidParameterError."""
    return _parameters(query, ("betas", "top_k", "timeout_ms"), settings)


def _parameters(query: QueryParams, names: tuple[str, ...], settings: Settings) -> Parameters:
    values: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in names:
            raise InvalidParameterError(f"there is no parameter {name[:40]!r}: use {', '.join(names)}")
        if name in values:
            raise InvalidParameterError(f"{name} is given more than once")
        values[name] = value
    if "beta" in values and "policy" in values:
        raise InvalidParameterError("beta and policy both choose: give one of them")
    betas = beta_grid(values.get("betas", DEFAULT_SWEEP))
    if len(betas) > settings.max_sweep_betas:
        raise InvalidParameterError(f"betas are {len(betas)}; give at most {settings.max_sweep_betas}")
    return Parameters(
        beta=parse_beta(values["beta"]) if "beta" in values else None,
        policy=values.get("policy"),
        betas=sorted(set(betas)),
        top_k=_whole("top_k", values.get("top_k", str(DEFAULT_TOP_K)), settings.max_top_k),
        timeout_ms=_whole("timeout_ms", values.get("timeout_ms", str(settings.timeout_ms)), settings.timeout_ms),
    )


def _whole(name: str, text: str, most: int) -> int:
    # int() also reads "1_0", " 1" and non-ASCII digits; the length keeps a huge number from being computed.
    is_number = text.isascii() and text.isdecimal() and len(text) <= 9
    if not is_number or not 1 <= int(text) <= most:
        raise InvalidParameterError(f"{name} is {text[:40]!r}; give a whole number from 1 to {most}")
    return int(text)
