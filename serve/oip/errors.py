"""What can go wrong in a request of the Open Inference Protocol, and how every error is told to its clients.

ServeError
└── OipError
    ├── InvalidRequestError      caller: the tensors, parameters or framing are wrong
    ├── RequestTooLargeError     caller: more bytes than the limit
    ├── UnknownModelError        caller: this server has another model, or another version of it
    ├── NotOfferedError          caller: a part of the protocol that this server leaves out
    └── PortTakenError           operator: gRPC cannot listen
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from serve.errors import ServeError
from serve.http.problems import INTERNAL, KINDS, Kind, kind_of, problem_response

PREFIX = "/v2"


class OipError(ServeError):
    """Base of the errors of this package."""


class InvalidRequestError(OipError):
    pass


class RequestTooLargeError(OipError):
    def __init__(self, what: str, limit: int, advice: str) -> None:
        super().__init__(f"the {what} has more than {limit:,} bytes, the limit: {advice}")


class UnknownModelError(OipError):
    pass


class NotOfferedError(OipError):
    pass


class PortTakenError(OipError):
    def __init__(self, address: str) -> None:
        super().__init__(f"gRPC cannot listen on {address}: choose another --grpc-port, or end what listens there")


OIP_KINDS: dict[type[OipError], Kind] = {
    InvalidRequestError: Kind(400, "invalid_request", "The inference request is not valid"),
    UnknownModelError: Kind(404, "unknown_model", "No such model or version"),
    RequestTooLargeError: Kind(413, "request_too_large", "The request is too large"),
    NotOfferedError: Kind(501, "not_offered", "Not offered by this server"),
}


def oip_kind(error: Exception) -> Kind:
    """How an error is told under /v2: as elsewhere, save that what is wrong with a request is always a 400."""
    for cls in type(error).__mro__:
        if cls in OIP_KINDS:
            return OIP_KINDS[cls]
    return _at_most_400(kind_of(error))


def oip_openapi_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of these statuses as OpenAPI responses; of every status where none is given."""
    by_status: dict[int, set[str]] = {}
    for kind in (*OIP_KINDS.values(), *map(_at_most_400, KINDS.values()), INTERNAL):
        by_status.setdefault(kind.status, set()).add(kind.title)
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        status: {"description": "; ".join(sorted(titles)), "content": {"application/json": {"schema": schema}}}
        for status, titles in by_status.items()
        if not statuses or status in statuses
    }


def _at_most_400(kind: Kind) -> Kind:
    return Kind(400, kind.code, kind.title) if kind.status in (415, 422) else kind


def is_oip(scope: Scope) -> bool:
    """Whether a request is one of this protocol, known route or not, so that its errors are told in its words."""
    path: str = scope["path"]
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def oip_response(kind: Kind, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that tells one error: `{"error": …}`, which is all that the protocol's clients read."""
    problem = problem_response(kind, detail, headers)
    kept = {name: value for name, value in problem.headers.items() if not name.startswith("content-")}
    return JSONResponse({"error": detail}, kind.status, kept)
