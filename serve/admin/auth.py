"""Who asks on the operator's listener, and what of a request is taken at all."""

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
    """Whoever the bearer token stands for; raises UnauthorizedError or MalformedRequestError."""
    authorization = only_value("Authorization", request.headers.getlist("authorization")) or ""
    scheme, _, secret = authorization.partition(" ")
    desk: AdminOperations = request.app.state.desk
    who = await desk.credential_of(secret.strip()) if scheme.lower() == "bearer" else None
    if who is None:
        raise UnauthorizedError
    access_fields(request.scope)["who"] = who.name
    return who


async def refuse_unknown_parameters(request: Request) -> None:
    """Raises InvalidParameterError for a parameter that the route does not have, or has twice: on a misspelt dry_run
    the change must not be made.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise InvalidParameterError(f"there is no parameter {name[:40]!r} here")
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidParameterError(f"the parameter {name} comes twice")


async def require_operator(who: Annotated[Credential, Depends(authenticate)]) -> Credential:
    """The same, where it may change something; raises ForbiddenError."""
    if not who.may_operate:
        raise ForbiddenError
    return who


Operator = Annotated[Credential, Depends(require_operator)]


async def read_json_body(request: Request) -> Any:
    """The JSON of a body; raises InvalidParameterError."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise InvalidParameterError(f"the JSON has more than {MAX_BODY_BYTES:,} bytes, the limit")
    return parse_json(bytes(body), max_bytes=MAX_BODY_BYTES, max_depth=MAX_BODY_DEPTH)
