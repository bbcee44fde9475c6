"""The query parameters: strict, since a misspelt `beta` must not silently mean the default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from serve.control.settings_state import POLICY_NAME
from serve.errors import InvalidParameterError
from serve.settings import Settings
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import MODE_BETAS, beta_grid, parse_beta

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


def openapi_parameters(settings: Settings, *, has_beta: bool = False, has_betas: bool = False) -> list[dict[str, Any]]:
    """The same parameters for OpenAPI; without β where the model has one token, and so none to choose."""
    beta = {
        "name": "beta",
        "in": "query",
        "description": "0 or `clean`: the clean token; 1 or `robust`: the robust one; between: their soup. "
        "Left out: the default of this service. Of several images, for those that name none.",
        "schema": {
            "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "enum": sorted(MODE_BETAS)}]
        },
        "examples": {"soup": {"value": 0.7}, "mode": {"value": "robust"}},
    }
    policy = {
        "name": "policy",
        "in": "query",
        "description": "name of a policy that the operator keeps, in the place of beta",
        "schema": {"type": "string", "pattern": f"^{POLICY_NAME}$"},
    }
    betas = {
        "name": "betas",
        "in": "query",
        "description": f"start:stop:step, or a list such as 0,0.5,1; at most {settings.max_sweep_betas}",
        "schema": {"type": "string", "default": DEFAULT_SWEEP},
    }
    return [
        *([beta, policy] if has_beta else ()),
        *([betas] if has_betas else ()),
        _openapi_whole("top_k", "how many labels, the most probable first", settings.max_top_k, DEFAULT_TOP_K),
        _openapi_whole("timeout_ms", "time limit of this request", settings.timeout_ms, settings.timeout_ms),
    ]


def _openapi_whole(name: str, description: str, most: int, default: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return {"name": name, "in": "query", "description": description, "schema": schema}
