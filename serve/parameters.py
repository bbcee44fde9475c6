"""The query parameters of /classify: strict, since a misspelt `beta` must not silently mean the default."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import QueryParams

from serve.errors import InvalidParameterError
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import MODE_BETAS, parse_beta


def classify_parameters(query: QueryParams, *, max_top_k: int) -> tuple[float | None, int]:
    """β (None where not given) and top_k; raises InvalidBetaError or InvalidParameterError."""
    values: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in ("beta", "top_k"):
            raise InvalidParameterError(f"there is no parameter {name[:40]!r}: use beta and top_k")
        if name in values:
            raise InvalidParameterError(f"{name} is given more than once")
        values[name] = value
    beta = parse_beta(values["beta"]) if "beta" in values else None
    return beta, _top_k(values["top_k"], max_top_k) if "top_k" in values else DEFAULT_TOP_K


def _top_k(text: str, max_top_k: int) -> int:
    # int() also reads "1_0", " 1" and non-ASCII digits; the length keeps a huge number from being computed.
    is_number = text.isascii() and text.isdecimal() and len(text) <= 9
    if not is_number or not 1 <= int(text) <= max_top_k:
        raise InvalidParameterError(f"top_k is {text[:40]!r}; give a whole number from 1 to {max_top_k}")
    return int(text)


def openapi_parameters(max_top_k: int, *, has_beta: bool) -> list[dict[str, Any]]:
    """The same parameters for OpenAPI; without β where the model has one token, and so none to choose."""
    beta = [
        {
            "name": "beta",
            "in": "query",
            "description": "0 or `clean`: the clean token; 1 or `robust`: the robust one; between: their soup. "
            "Left out: the default of this service.",
            "schema": {
                "anyOf": [
                    {"type": "number", "minimum": 0, "maximum": 1},
                    {"type": "string", "enum": sorted(MODE_BETAS)},
                ]
            },
            "examples": {"soup": {"value": 0.7}, "mode": {"value": "robust"}},
        }
    ]
    return [
        *(beta if has_beta else ()),
        {
            "name": "top_k",
            "in": "query",
            "description": "how many labels, the most probable first",
            "schema": {"type": "integer", "minimum": 1, "maximum": max_top_k, "default": DEFAULT_TOP_K},
        },
    ]
