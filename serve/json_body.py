"""JSON from strangers: its size and its depth are checked before it is parsed."""

from __future__ import annotations

import json
import re
from typing import Any

from serve.errors import InvalidParameterError

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def parse_json(body: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """The value of a JSON text; raises InvalidParameterError where it is none, too large or too deep."""
    if len(body) > max_bytes:
        raise InvalidParameterError(f"the JSON has more than {max_bytes:,} bytes, the limit")
    depth = 0
    for token in _TOKENS.finditer(body):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        if depth > max_depth:
            raise InvalidParameterError(f"the JSON is nested more than {max_depth} deep, the limit")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidParameterError("the body is not JSON") from None
