"""Builds the OpenAPI description of the query parameters and bodies of /classify and /sweep."""

from __future__ import annotations

from typing import Any

from serve.api.images import (
    BETA_FIELD,
    FORM_TYPE,
    IMAGE_FIELD,
    IMAGE_TYPES,
    JSON_TYPE,
    MIX_FIELD,
    STRENGTH_FIELD,
    TOKEN_FIELD,
)
from serve.control.settings_state import POLICY_NAME
from serve.settings import Settings
from tureen.soup import DEFAULT_SWEEP, DEFAULT_TOP_K
from tureen.tokens import MAX_MIX_TOKENS, MAX_WEIGHT, MODE_BETAS, TOKEN_NAME

STRENGTH_SCHEMA = {"type": "number", "minimum": 0, "maximum": 1}
TOKEN_SCHEMA = {"type": "string", "pattern": f"^{TOKEN_NAME}$"}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def request_body(*, several: bool) -> dict[str, Any]:
    """Returns the OpenAPI description of the request body: a raw image, a form or JSON.

    several: whether the body may contain several images, each with its own β.
    """
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
        "properties": {"data": {"type": "string", "description": "the image in base64, or a base64 data: URL"}},
        "required": ["data"],
        "additionalProperties": False,
    }
    if several:
        image["properties"] |= {
            BETA_FIELD: beta,
            STRENGTH_FIELD: {
                "anyOf": [STRENGTH_SCHEMA, {"type": "null"}],
                "description": "strength of the image; use it instead of beta",
            },
            TOKEN_FIELD: {
                "anyOf": [TOKEN_SCHEMA, {"type": "null"}],
                "description": "token in place of the clean one, alone or mixed by beta or strength",
            },
            MIX_FIELD: {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "additionalProperties": {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT},
                        "minProperties": 1,
                        "maxProperties": MAX_MIX_TOKENS,
                    },
                    {"type": "null"},
                ],
                "description": "weights of tokens by name; use it instead of beta, strength and token",
            },
        }
    images = {"type": "array", "items": image, "minItems": 1, **({} if several else {"maxItems": 1})}
    json_body = {
        "schema": {
            "type": "object",
            "properties": {"images": images},
            "required": ["images"],
            "additionalProperties": False,
        }
    }
    if several:
        beta_text = {"type": "string", "description": "a number, `clean` or `robust`"}
        strength_text = {"type": "string", "description": "a number; instead of beta"}
        token_text = {"type": "string", "description": "name of a token; instead of beta"}
        mix_text = {"type": "string", "description": "a mix such as fog:0.7,robust:0.3; instead of beta"}
        form["schema"]["properties"] = {
            name: {"anyOf": [part, {"type": "array", "items": part}]}  # in a form, a list of one is the item itself
            for name, part in (
                (IMAGE_FIELD, file),
                (BETA_FIELD, beta_text),
                (STRENGTH_FIELD, strength_text),
                (TOKEN_FIELD, token_text),
                (MIX_FIELD, mix_text),
            )
        }
    content = {**dict.fromkeys(sorted(IMAGE_TYPES), BINARY), FORM_TYPE: form, JSON_TYPE: json_body}
    return {"required": True, "content": content}


def query_parameters(settings: Settings, *, has_beta: bool = False, has_betas: bool = False) -> list[dict[str, Any]]:
    """Returns the OpenAPI description of a route's query parameters.

    has_beta: whether the route has the parameters that choose a token; they are not shown if the model has one token.
    has_betas: whether the route has betas and strengths. settings: the limits of the values.
    """
    beta = {
        "name": "beta",
        "in": "query",
        "description": "0 or `clean`: the clean token. 1 or `robust`: the robust token. Between: a mixture of both. "
        "Default: the β of the operator's settings. In a request of several images: the β of images without their own.",
        "schema": {
            "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "enum": sorted(MODE_BETAS)}]
        },
        "examples": {"soup": {"value": 0.7}, "mode": {"value": "robust"}},
    }
    strength = {
        "name": "strength",
        "in": "query",
        "description": "position between clean mode (0) and robust mode (1), in even steps of the model's logits; "
        "use it instead of beta",
        "schema": STRENGTH_SCHEMA,
    }
    token = {
        "name": "token",
        "in": "query",
        "description": "name of a token, which takes the place of the clean one: alone, or mixed with the robust token "
        "by beta or strength",
        "schema": TOKEN_SCHEMA,
    }
    mix = {
        "name": "mix",
        "in": "query",
        "description": f"weights of at most {MAX_MIX_TOKENS} tokens, such as clean:0.2,robust:0.5,fog:0.3, each from 0 "
        f"to {MAX_WEIGHT:g}; use it instead of beta, strength and token",
        "schema": {"type": "string"},
    }
    normalize = {
        "name": "normalize",
        "in": "query",
        "description": "whether the weights of mix are divided by their sum",
        "schema": {"type": "boolean", "default": True},
    }
    policy = {
        "name": "policy",
        "in": "query",
        "description": "name of a policy in the operator's settings; use it instead of beta",
        "schema": {"type": "string", "pattern": f"^{POLICY_NAME}$"},
    }
    betas = {
        "name": "betas",
        "in": "query",
        "description": f"start:stop:step, or a list such as 0,0.5,1; at most {settings.max_sweep_betas} values",
        "schema": {"type": "string", "default": DEFAULT_SWEEP},
    }
    strengths = {
        "name": "strengths",
        "in": "query",
        "description": "strengths in the notation of betas; use it instead of betas",
        "schema": {"type": "string"},
    }
    return [
        *([beta, strength, token, mix, normalize, policy] if has_beta else ()),
        *([betas, strengths] if has_betas else ()),
        _integer_parameter("top_k", "number of labels, most probable first", settings.max_top_k, DEFAULT_TOP_K),
        _integer_parameter(
            "timeout_ms", "time limit of this request in milliseconds", settings.timeout_ms, settings.timeout_ms
        ),
    ]


def _integer_parameter(name: str, description: str, maximum: int, default: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}
    return {"name": name, "in": "query", "description": description, "schema": schema}
