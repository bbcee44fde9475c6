"""Reads from a request's headers and address what decides its β: policy, API key, and the key of a canary."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from serve.control.beta_choice import ClientIdentity
from serve.errors import MalformedRequestError


def client_identity_of(request: Request, policy: str | None = None) -> ClientIdentity:
    """What the request says of itself: its policy, its API key, and what keeps it on one side of a canary.

    Raises MalformedRequestError.
    """
    api_key = only_value("X-API-Key", request.headers.getlist("x-api-key"))
    request_key = only_value("X-Request-Key", request.headers.getlist("x-request-key"))
    address = request.client.host if request.client is not None else ""
    return ClientIdentity(policy, api_key, request_key or api_key or address)


def only_value(name: str, values: Sequence[str]) -> str | None:
    """The value of a header that may come once, None without it; raises MalformedRequestError for several."""
    if len(values) > 1:  # a proxy may read the first, and this server the last
        raise MalformedRequestError(f"the request has {name} {len(values)} times: send it once")
    return values[0] if values else None
