"""Registers the handlers that turn exceptions into responses, by the tables in `serve.http.problems`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serve.http.cors import preflight_response
from serve.http.problems import (
    INTERNAL,
    headers_of,
    http_problem_type,
    is_oip,
    oip_problem_type,
    oip_response,
    problem_response,
    problem_type_of,
)
from serve.http.request_log import access_fields
from tureen.errors import TureenError


def add_error_handlers(app: FastAPI, cors_origins: frozenset[str]) -> None:
    """Registers the handlers of TureenError and of HTTPException.

    cors_origins: the origins whose CORS preflights are allowed.
    """
    app.add_exception_handler(TureenError, tureen_error_response)
    app.add_exception_handler(HTTPException, _http_error_handler(cors_origins))


async def tureen_error_response(request: Request, error: Exception, detail: str | None = None) -> Response:
    """Returns the response for an error whose class is in the tables of `serve.http.problems`.

    Adds the code of the error to the log event of the request. detail: replaces the message of the error. If the class
    is not in the tables, raises `error` itself, because its message is not for clients.
    """
    kind = oip_problem_type(error) if is_oip(request.scope) else problem_type_of(error)
    if kind is INTERNAL:  # not in the table, so its message is not for clients
        raise error
    access_fields(request.scope)["code"] = kind.code
    respond = oip_response if is_oip(request.scope) else problem_response
    return respond(kind, str(error) if detail is None else detail, headers_of(error))


def _http_error_handler(
    cors_origins: frozenset[str],
) -> Callable[[Request, Exception], Coroutine[Any, Any, Response]]:
    """Returns the handler of HTTPException, which the framework raises with a status such as 404 or 405.

    The handler responds to CORS preflights too, if the origin is in `cors_origins`. A preflight has the method OPTIONS,
    which no route accepts, so the framework raises 405.
    """

    async def http_error_response(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405 and request.method == "OPTIONS":
            preflight = preflight_response(cors_origins, request.headers)
            if preflight is not None:
                return preflight
        kind = http_problem_type(error.status_code)
        access_fields(request.scope)["code"] = kind.code
        is_wrong_method = kind.status == 405
        detail = (
            f"this path does not support {request.method}: /docs lists the methods"
            if is_wrong_method
            else "/docs lists the paths of this server"
        )
        respond = oip_response if is_oip(request.scope) else problem_response
        return respond(kind, detail, dict(error.headers or {}))

    return http_error_response
