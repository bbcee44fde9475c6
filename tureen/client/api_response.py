"""Parses the responses of /classify and /sweep, and the errors of any route. Receives nothing itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from tureen.client.client_errors import ClientError, ServerError, error_class
from tureen.errors import ImageError, ImageTooLargeError
from tureen.interface.predictions import Classification
from tureen.interface.sweeps import Sweep

IMAGE_CODES: Final = frozenset({
    "decoding_failed",
    "empty_image",
    "image_too_large",
    "request_too_large",
    "too_many_pixels",
    "undecodable_image",
    "unsupported_image_type",
})  # fmt: skip
"""The codes that one image causes, if the request has only that image."""
TOO_LARGE_CODES: Final = frozenset({"request_too_large", "too_many_pixels"})
"""The codes of a request of several images that the server accepts in parts."""
UNREADABLE: Final = "unreadable_image"  # the code of an image whose file this machine cannot read


class ServedClassification(Classification):
    """The response of a server to one image.

    model, version: of the model that classified it. revision: of the operator's settings when the server admitted the
    request. beta_source: what chose β, such as "request" or "operator".
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    revision: int
    beta_source: str


class ImageProblem(BaseModel):
    """The error of one image among several.

    code: of the server, or UNREADABLE. status: that of the response to this image alone; None if it was not sent.
    detail: what happened, and what to do.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    status: int | None
    detail: str


class ServedSweep(Sweep):
    """The response of a server to a sweep of one image. model, version, revision: as of `ServedClassification`."""

    model: str
    version: str
    revision: int


ImageResult = ServedClassification | ImageProblem


def parse_classification(body: bytes) -> ServedClassification:
    """Returns the classification of a request with one image. Raises ServerError if the body has another form."""
    try:
        return ServedClassification.model_validate_json(body)
    except ValidationError:
        raise _unexpected_body() from None


def parse_results(body: bytes, count: int) -> list[ImageResult]:
    """Returns the result of each image of a request with several.

    count: the number of images. Raises ServerError if the body has another form, or another number of results.
    """
    try:
        response = json.loads(body)
        shared = {name: response[name] for name in ("model", "version", "revision", "calibrated")}
        results: list[ImageResult] = [
            ImageProblem.model_validate(entry["problem"])
            if "problem" in entry
            else ServedClassification.model_validate({**shared, **entry})
            for entry in response["results"]
        ]
    except (ValueError, KeyError, TypeError):  # a ValidationError is a ValueError
        raise _unexpected_body() from None
    if len(results) != count:
        raise _unexpected_body()
    return results


def parse_sweep(body: bytes) -> ServedSweep:
    """Returns the sweep in a response. Raises ServerError if the body has another form."""
    try:
        return ServedSweep.model_validate_json(body)
    except ValidationError:
        raise _unexpected_body() from None


def check_status(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises the error that a response gives, if its status is not 200.

    headers: by name, of any case. The class of the error follows from the code of the problem, else from the status.
    """
    if status == 200:
        return
    problem = _problem(body)
    code, detail = problem.get("code"), problem.get("detail")
    if not isinstance(code, str) or not isinstance(detail, str):
        code, detail = "unexpected_response", f"the response has status {status} and no problem of Tureen"
    raise error_class(code, status)(
        detail,
        code=code,
        status=status,
        request_id=headers.get("x-request-id"),
        retry_after_s=parse_retry_after(headers.get("retry-after"), datetime.now(UTC)),
    )


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Returns the seconds that a header Retry-After gives, as a number or as a date; None if it gives neither.

    now: the time at which the header was received, with a timezone. A date in the past is 0.
    """
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    try:
        seconds = (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):  # no date, or a date without a timezone
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def is_problem_of_image(error: ClientError) -> bool:
    """Returns whether the image is the cause of the error. error: of a request with one image."""
    return error.code in IMAGE_CODES


def problem_of_image(error: ClientError | ImageError) -> ImageProblem:
    """Returns the problem of an image that the server refused, or that this machine cannot read."""
    if isinstance(error, ClientError):
        return ImageProblem(code=error.code, status=error.status, detail=error.detail)
    code = "image_too_large" if isinstance(error, ImageTooLargeError) else UNREADABLE
    return ImageProblem(code=code, status=None, detail=str(error))


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _unexpected_body() -> ServerError:
    return ServerError(
        "the response has another form than that of Tureen: check the URL", code="unexpected_response", status=200
    )
