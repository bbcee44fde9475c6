"""What OpenAPI says of the parameters and bodies of /classify and /sweep."""

from __future__ import annotations

from typing import Any

from serve.api.images import (
    BETA_FIELD,
    FORM_TYPE,
    IMAGE_FIELD,
    IMAGE_TYPES,
    JSON_TYPE,
)
from serve.api.query import DEFAULT_SWEEP
from serve.control.settings_state import POLICY_NAME
from serve.settings import Settings
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import MODE_BETAS

BINARY = {"schema": {"type": "string", "format": "binary"}}


def _openapi_body(*, several: bool) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form: dict[str, Any] = {
        "schema": {
            "type": "object",
            "properties": {IMAGE_FIELD: file},
            "required": [IMAGE_FIELD],
            "additionalProperties": False,
        }
    }
    beta = {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "enum": sorted(MODE_BETAS)},
            {"type": "null"},
        ]
    }
    image: dict[str, Any] = {
        "type": "object",
        "properties": {"data": {"type": "string", "description": "base64, or a data: URL of it"}},
        "required": ["data"],
        "additionalProperties": False,
    }
    if several:
        image["properties"]["beta"] = beta
    images = {"type": "array", "items": image, "minItems": 1, **({} if several else {"maxItems": 1})}
    listed = {
        "schema": {
            "type": "object",
            "properties": {"images": images},
            "required": ["images"],
            "additionalProperties": False,
        }
    }
    if several:
        one = {"type": "string", "description": "a number, clean or robust"}
        form["schema"]["properties"] = {
            name: {"anyOf": [part, {"type": "array", "items": part}]}  # of a form one part is a list of one
            for name, part in ((IMAGE_FIELD, file), (BETA_FIELD, one))
        }
    content = {**dict.fromkeys(sorted(IMAGE_TYPES), BINARY), FORM_TYPE: form, JSON_TYPE: listed}
    return {"required": True, "content": content}


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
