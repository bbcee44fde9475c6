"""Authenticates requests to the operators' listener, and checks their query and body."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from serve.admin.operations import AdminOperations
from serve.control.credential_store import Credential
from serve.errors import ForbiddenError, InvalidParameterError, UnauthorizedError
from serve.http.client_identity import only_value
from serve.http.json_body import parse_json
from serve.http.request_log import access_fields

MAX_BODY_BYTES = 64 * 1024
MAX_BODY_DEPTH = 4


async def authenticate(request: Request) -> Credential:
    """Returns the operator's credential to which the bearer token in the Authorization header belongs.

    Adds the name of the credential to the log event of the request. Raises UnauthorizedError if the token is absent or
    unknown, MalformedRequestError if the header occurs more than once, and the errors of
    `AdminOperations.find_credential`.
    """
    authorization = only_value("Authorization", request.headers.getlist("authorization")) or ""
    scheme, _, secret = authorization.partition(" ")
    operations: AdminOperations = request.app.state.operations
    credential = await operations.find_credential(secret.strip()) if scheme.lower() == "bearer" else None
    if credential is None:
        raise UnauthorizedError
    access_fields(request.scope)["who"] = credential.name
    return credential


async def refuse_unknown_parameters(request: Request) -> None:
    """Raises InvalidParameterError if the query has an unknown or a repeated parameter.

    Without this check, a request with a misspelt dry_run would make the change.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise InvalidParameterError(f"the route has no parameter {name[:40]!r}")
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidParameterError(f"the parameter {name} is given more than once")


async def require_operator(credential: Annotated[Credential, Depends(authenticate)]) -> Credential:
    """Returns the credential of the request. Raises ForbiddenError if the role of the credential allows no changes."""
    if not credential.may_operate:
        raise ForbiddenError
    return credential


Operator = Annotated[Credential, Depends(require_operator)]


async def read_json_body(request: Request) -> Any:
    """Returns the parsed JSON of the request body.

    Raises InvalidParameterError if the body is not valid JSON, has more than MAX_BODY_BYTES, or is nested more than
    MAX_BODY_DEPTH deep.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    return parse_json(body, max_bytes=MAX_BODY_BYTES, max_depth=MAX_BODY_DEPTH)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Returns the request body. Raises InvalidParameterError if it has more than max_bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise InvalidParameterError(f"the body has more than {max_bytes:,} bytes, the limit")
    return bytes(body)
