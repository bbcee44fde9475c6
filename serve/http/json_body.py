"""JSON from strangers: its size and its depth are checked before it is parsed. And binary data as a text in it."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from serve.errors import InvalidParameterError

# All bytes but these leave the text before its depth is counted: a loop over brackets in Python would cost seconds.
_BESIDES_BRACKETS_AND_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def parse_json(body: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Raises InvalidParameterError where it is none, too large or too deep.
    """
    if len(body) > max_bytes:
        raise InvalidParameterError(f"the JSON has more than {max_bytes:,} bytes, the limit")
    if _depth(body) > max_depth:
        raise InvalidParameterError(f"the JSON is nested more than {max_depth} deep, the limit")
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidParameterError("the body is not JSON, or says a name twice") from None


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text in the standard or the URL-safe alphabet, or of a `data:` URL that holds one.

    White space is ignored and the padding may be missing. Raises ValueError.
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
    """An object of names that each come once: of two, one would silently mean nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(name)  # NaN and infinities, which are no JSON


def _depth(body: bytes) -> int:
    """How deep arrays and objects are nested, brackets within strings aside; of JSON in UTF-8."""
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = unescaped.translate(None, _BESIDES_BRACKETS_AND_QUOTES).split(b'"')[::2]
    brackets = np.frombuffer(b"".join(outside_strings), np.uint8)
    return int(np.cumsum(_STEPS[brackets], dtype=np.int32).max(initial=0))
