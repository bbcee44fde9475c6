"""Maps exception classes to HTTP responses. Tables give the status, the code and the title of each response.

The exception handlers, OpenAPI and the docs use the tables. The body of an error response is application/problem+json
(RFC 9457). On paths below /v2 the body has the form of the Open Inference Protocol. A client never receives the text of
a library's exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import Scope

from serve import errors
from tureen import errors as core_errors
from tureen.errors import TureenError

MEDIA_TYPE = "application/problem+json"
OIP_PREFIX = "/v2"
RETRY_AFTER_S = 1
INTERNAL_DETAIL = "the server log has the cause under the id of this request (X-Request-ID)"


class Problem(BaseModel):
    """The body of an error response, as RFC 9457 defines it, with the additional field `code`."""

    type: str = Field(default="about:blank")  # a URI, as RFC 9457 requires; `code` identifies the error
    title: str = Field(description="kind of error; the same text for each error of this code")
    status: int  # of the HTTP response
    code: str = Field(description="stable identifier, for programs")
    detail: str = Field(description="what happened in this request, and what to do")


@dataclass(frozen=True)
class ProblemType:
    """The status, the code and the title of the response to one class of exceptions."""

    status: int
    code: str
    title: str


PROBLEM_TYPES: dict[type[TureenError], ProblemType] = {
    errors.MalformedRequestError: ProblemType(400, "malformed_request", "The request is malformed"),
    errors.HeadTimeoutError: ProblemType(408, "head_timeout", "The request's head came too slowly"),
    errors.TooManyChunksError: ProblemType(413, "too_many_chunks", "The body has too many chunks"),
    errors.UntrustedHostError: ProblemType(421, "untrusted_host", "The Host is not one of this server"),
    errors.HeadTooLargeError: ProblemType(431, "head_too_large", "The request's head is too large"),
    errors.TooManyConnectionsError: ProblemType(503, "too_many_connections", "The server has too many connections"),
    core_errors.EmptyImageError: ProblemType(400, "empty_image", "The request holds no image"),
    core_errors.UndecodableImageError: ProblemType(400, "undecodable_image", "The image cannot be decoded"),
    errors.MalformedFormError: ProblemType(400, "malformed_form", "The form cannot be read"),
    errors.IncompleteBodyError: ProblemType(400, "incomplete_body", "The body is incomplete"),
    errors.ClientGoneError: ProblemType(499, "client_gone", "The client closed the connection"),
    errors.BodyTimeoutError: ProblemType(408, "body_timeout", "The body came too slowly"),
    core_errors.ImageTooLargeError: ProblemType(413, "image_too_large", "The image is too large"),
    core_errors.UnsupportedImageTypeError: ProblemType(
        415, "unsupported_image_type", "The image type is not supported"
    ),
    core_errors.InvalidBetaError: ProblemType(422, "invalid_beta", "β is not valid"),
    core_errors.InvalidStrengthError: ProblemType(422, "invalid_strength", "The strength is not valid"),
    core_errors.InvalidMixError: ProblemType(422, "invalid_mix", "The mix of tokens is not valid"),
    core_errors.UnknownTokenError: ProblemType(422, "unknown_token", "The model has no token of this name"),
    core_errors.SingleTokenError: ProblemType(422, "single_token", "The model has one token, so it has no β"),
    errors.TooManyPixelsError: ProblemType(413, "too_many_pixels", "The images have too many pixels in total"),
    errors.RequestTooLargeError: ProblemType(413, "request_too_large", "The request is too large"),
    errors.InvalidParameterError: ProblemType(422, "invalid_parameter", "A parameter is not valid"),
    errors.UnknownApiKeyError: ProblemType(401, "unknown_api_key", "The API key is unknown"),
    errors.ChoiceNotAllowedError: ProblemType(403, "choice_not_allowed", "Clients may not choose β"),
    errors.BetaOutOfBoundsError: ProblemType(422, "beta_out_of_bounds", "β is outside the operator's bounds"),
    errors.UnknownPolicyError: ProblemType(422, "unknown_policy", "The policy does not exist"),
    errors.OverloadedError: ProblemType(429, "overloaded", "The server is overloaded"),
    errors.InferenceError: ProblemType(500, "inference_failed", "The engine failed"),
    errors.DecodingError: ProblemType(500, "decoding_failed", "The decoder failed"),
    errors.TokenParkedError: ProblemType(503, "token_parked", "The model cannot use the token"),
    errors.NotReadyError: ProblemType(503, "not_ready", "The server is not ready"),
    errors.ShuttingDownError: ProblemType(503, "shutting_down", "The server is shutting down"),
    errors.DeadlineError: ProblemType(504, "deadline_exceeded", "The deadline of the request has passed"),
}
OPERATOR_PROBLEM_TYPES: dict[type[TureenError], ProblemType] = {  # on the admin listener only
    errors.UnauthorizedError: ProblemType(401, "unauthorized", "The bearer token is missing or wrong"),
    errors.ForbiddenError: ProblemType(403, "forbidden", "The credential may not change anything"),
    core_errors.TokenFileError: ProblemType(422, "invalid_token", "The token cannot be used"),
    errors.UnknownOperatorTokenError: ProblemType(404, "unknown_operator_token", "No operator has added the token"),
    errors.UnknownRevisionError: ProblemType(404, "unknown_revision", "The revision does not exist"),
    errors.StaleRevisionError: ProblemType(412, "stale_revision", "The settings have changed since that revision"),
    errors.InvalidChangeError: ProblemType(422, "invalid_change", "The change is not valid"),
    errors.JobsUnavailableError: ProblemType(404, "no_jobs", "The server takes no jobs"),
    errors.UnknownJobError: ProblemType(404, "unknown_job", "The job does not exist"),
    errors.NoResultError: ProblemType(404, "no_result", "The result does not exist"),
    errors.JobStateError: ProblemType(409, "job_state", "The job is in another state"),
    errors.InputError: ProblemType(422, "invalid_job", "The job is not valid"),
    errors.OutputError: ProblemType(422, "invalid_output", "The output cannot be used"),
    errors.OutsideRootsError: ProblemType(422, "outside_roots", "The path is outside the directories for jobs"),
    errors.TooManyJobsError: ProblemType(429, "too_many_jobs", "Too many jobs have not ended"),
    errors.AdminListenerError: ProblemType(503, "no_credential", "The server has no credential for this address"),
    errors.IfMatchRequiredError: ProblemType(428, "if_match_required", "The change names no revision"),
    errors.BrokenHistoryError: ProblemType(500, "history_broken", "The history is broken"),
    errors.ControlStoreError: ProblemType(503, "store_unreachable", "The settings store cannot be reached"),
}
OIP_PROBLEM_TYPES: dict[type[TureenError], ProblemType] = {
    errors.InvalidRequestError: ProblemType(400, "invalid_request", "The inference request is not valid"),
    errors.UnknownModelError: ProblemType(404, "unknown_model", "No such model or version"),
    errors.InferRequestTooLargeError: ProblemType(413, "request_too_large", "The request is too large"),
    errors.NotOfferedError: ProblemType(501, "not_offered", "Not offered by this server"),
}
_EVERY_TYPE = PROBLEM_TYPES | OPERATOR_PROBLEM_TYPES
INTERNAL = ProblemType(500, "internal_error", "Internal error")


def problem_type_of(error: Exception) -> ProblemType:
    """Returns the problem type of the exception's class, or else of the nearest base class in the tables.

    Returns INTERNAL if the tables have neither.
    """
    return next((_EVERY_TYPE[cls] for cls in type(error).__mro__ if cls in _EVERY_TYPE), INTERNAL)


def problem_response(kind: ProblemType, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns the error response of a problem type. A response with status 429 or 503 has a Retry-After header.

    detail: what happened, and what the client can do. headers: additional headers of the response.
    """
    body = Problem(title=kind.title, status=kind.status, code=kind.code, detail=detail)
    headers = dict(headers or {})
    if kind.status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return JSONResponse(body.model_dump(), kind.status, headers, MEDIA_TYPE)


def headers_of(error: Exception) -> dict[str, str]:
    """Returns the headers that an error adds to its response: Retry-After, WWW-Authenticate or none."""
    if isinstance(error, errors.OverloadedError):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, errors.UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def problem_of(error: TureenError) -> Problem:
    """Returns the problem that replaces the result of a failed image in a response to several images.

    error: of this image.
    """
    kind = problem_type_of(error)
    detail = INTERNAL_DETAIL if kind is INTERNAL else str(error)
    return Problem(title=kind.title, status=kind.status, code=kind.code, detail=detail)


def http_problem_type(status: int) -> ProblemType:
    """Returns the problem type of an error that the framework raised with a status, such as 404 or 405."""
    phrase = HTTPStatus(status).phrase
    return ProblemType(status, phrase.lower().replace(" ", "_"), phrase)


def openapi_responses() -> dict[int | str, dict[str, Any]]:
    """Returns the errors of the public API as OpenAPI responses, by status."""
    by_status: dict[int, list[ProblemType]] = {}
    for kind in (*PROBLEM_TYPES.values(), INTERNAL):
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.code}`: {kind.title}" for kind in kinds),
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status, kinds in by_status.items()
    }


def oip_problem_type(error: Exception) -> ProblemType:
    """Returns the problem type of an error on a path below /v2, where the status 400 replaces 415 and 422."""
    for cls in type(error).__mro__:
        if cls in OIP_PROBLEM_TYPES:
            return OIP_PROBLEM_TYPES[cls]
    return _at_most_400(problem_type_of(error))


def oip_openapi_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the errors of the paths below /v2 as OpenAPI responses, by status.

    statuses: returns only these; without arguments, all.
    """
    by_status: dict[int, set[str]] = {}
    for kind in (*OIP_PROBLEM_TYPES.values(), *map(_at_most_400, PROBLEM_TYPES.values()), INTERNAL):
        by_status.setdefault(kind.status, set()).add(kind.title)
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        status: {"description": "; ".join(sorted(titles)), "content": {"application/json": {"schema": schema}}}
        for status, titles in by_status.items()
        if not statuses or status in statuses
    }


def _at_most_400(kind: ProblemType) -> ProblemType:
    return ProblemType(400, kind.code, kind.title) if kind.status in (415, 422) else kind


def is_oip(scope: Scope) -> bool:
    """Returns whether the path is below /v2, so that errors have the form of the Open Inference Protocol."""
    path: str = scope["path"]
    return path == OIP_PREFIX or path.startswith(f"{OIP_PREFIX}/")


def oip_response(kind: ProblemType, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns the error response of the Open Inference Protocol, with the body `{"error": detail}`."""
    problem = problem_response(kind, detail, headers)
    kept = {name: value for name, value in problem.headers.items() if not name.startswith("content-")}
    return JSONResponse({"error": detail}, kind.status, kept)
