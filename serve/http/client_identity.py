"""Reads the identity of a client, which may influence β, from the headers and the address of its request."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from serve.control.beta_choice import ClientIdentity
from serve.errors import MalformedRequestError


def client_identity_of(request: Request, policy: str | None = None) -> ClientIdentity:
    """Returns the identity of the client: policy, API key (X-API-Key), and the value `sticky`.

    `sticky` is the header X-Request-Key, else the API key, else the address of the client. A canary gives a share of
    the requests another default β. It includes all requests with the same `sticky`, or none of them. policy: the policy
    that the query names, or None. Raises MalformedRequestError if X-API-Key or X-Request-Key occurs more than once.
    """
    api_key = only_value("X-API-Key", request.headers.getlist("x-api-key"))
    request_key = only_value("X-Request-Key", request.headers.getlist("x-request-key"))
    address = request.client.host if request.client is not None else ""
    return ClientIdentity(policy, api_key, request_key or api_key or address)


def only_value(name: str, values: Sequence[str]) -> str | None:
    """Returns the value of the header `name`, or None if `values` is empty.

    Raises MalformedRequestError if there are several values.
    """
    if len(values) > 1:  # a proxy may read the first value and this server the last
        raise MalformedRequestError(f"the request has {name} {len(values)} times: send it once")
    return values[0] if values else None
