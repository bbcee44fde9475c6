"""Builds the OpenAPI description of the Open Inference Protocol's routes.

It is short, because the specification of the protocol has the details.
"""

from __future__ import annotations

from typing import Any

from serve.oip.codec import HEADER_LENGTH
from serve.oip.request import BETA, INPUT_DATATYPES, MAX_ID_CHARACTERS, OUTPUTS, STRENGTH
from tureen.tokens import MODE_BETAS

TAG = "Open Inference Protocol"
_TEXT = {"type": "string"}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def path_parameters(path: str) -> list[dict[str, Any]]:
    """Returns an OpenAPI parameter for each `{name}` in the path of a route."""
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]


def infer_parameters() -> list[dict[str, Any]]:
    """Returns the OpenAPI description of the query parameters and headers of an inference request."""
    beta = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "enum": sorted(MODE_BETAS)}]}
    return [
        {
            "name": BETA,
            "in": "query",
            "schema": beta,
            "description": "β of every image; a request with a tensor or a parameter `beta` too is refused",
        },
        {
            "name": STRENGTH,
            "in": "query",
            "schema": {"type": "number", "minimum": 0, "maximum": 1},
            "description": "strength of every image; use it instead of beta",
        },
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "length of the JSON in bytes if binary data follows it; 0: the body is one encoded image",
        },
    ]


def infer_body() -> dict[str, Any]:
    """Returns the OpenAPI description of an inference request's body: JSON, or JSON followed by binary data."""
    request = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
            "parameters": {"type": "object"},
            "inputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "enum": sorted(INPUT_DATATYPES)},
                        "datatype": {"type": "string", "enum": sorted(set(INPUT_DATATYPES.values()))},
                        "shape": _SHAPE,
                        "parameters": {"type": "object"},
                        "data": {"type": "array", "items": {}},
                    },
                    "required": ["name", "datatype", "shape"],
                },
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "enum": list(OUTPUTS)},
                        "parameters": {"type": "object"},
                    },
                    "required": ["name"],
                },
            },
        },
        "required": ["inputs"],
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": {"application/json": {"schema": request}, "application/octet-stream": binary}}


def infer_response() -> dict[str, Any]:
    """Returns the OpenAPI description of an inference response: JSON, followed by binary data if requested."""
    output = {
        "type": "object",
        "properties": {"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE, "data": {"type": "array", "items": {}}},
        "required": ["name", "datatype", "shape"],
    }
    response = {
        "type": "object",
        "properties": {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": {
                "type": "object",
                "description": "`beta`, `strength`, `beta_source`, `revision` and `calibrated`",
            },
            "outputs": {"type": "array", "items": output},
        },
        "required": ["model_name", "outputs"],
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": response}, "application/octet-stream": binary}
    return {"description": "The outputs that the request names", "content": content}
