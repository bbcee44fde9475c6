"""Parses untrusted JSON, within limits of size and depth, and decodes base64 texts."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from serve.errors import InvalidParameterError

# `_depth` deletes these bytes and counts the rest: a Python loop over all bytes would take seconds.
_BESIDES_BRACKETS_AND_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def parse_json(body: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """Returns the value of a JSON text in UTF-8, with or without a byte order mark.

    max_depth: levels of nested arrays and objects. Raises InvalidParameterError if the body is not JSON, has more than
    max_bytes, is nested more than max_depth deep, or has an object with a repeated name.
    """
    if len(body) > max_bytes:
        raise InvalidParameterError(f"the JSON has more than {max_bytes:,} bytes, the limit")
    if _depth(body) > max_depth:
        raise InvalidParameterError(f"the JSON is nested more than {max_depth} levels deep, the limit")
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidParameterError("the body is not valid JSON, or an object has a name twice") from None


def decode_base64(text: str) -> bytes:
    """Returns the bytes that a base64 text or a base64 `data:` URL encodes.

    Accepts the standard and the URL-safe alphabet, white space, and missing padding. Raises ValueError for any other
    text.
    """
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data: URL without base64")
    digits = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n")
    unpadded = digits.rstrip(b"=")
    if len(digits) - len(unpadded) > 2:
        raise ValueError("too much padding")
    return base64.b64decode(unpadded + b"=" * (-len(unpadded) % 4), validate=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dictionary.

    Raises ValueError for a repeated name, because Python would silently drop one of the values.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(name)  # NaN and infinities are not JSON


def _depth(body: bytes) -> int:
    """Returns the nesting depth of arrays and objects in a UTF-8 JSON text. Ignores brackets within strings."""
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = unescaped.translate(None, _BESIDES_BRACKETS_AND_QUOTES).split(b'"')[::2]
    brackets = np.frombuffer(b"".join(outside_strings), np.uint8)
    return int(np.cumsum(_STEPS[brackets], dtype=np.int32).max(initial=0))
