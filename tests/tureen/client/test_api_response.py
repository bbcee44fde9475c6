import json
from datetime import UTC, datetime

import pytest

from serve.api.responses import ClassifyResponse, SweepResponse
from serve.http.problems import PROBLEM_TYPES
from tureen.client.api_response import (
    IMAGE_CODES,
    TOO_LARGE_CODES,
    ImageProblem,
    ServedClassification,
    ServedSweep,
    check_status,
    is_problem_of_image,
    parse_classification,
    parse_results,
    parse_retry_after,
    parse_sweep,
    problem_of_image,
)
from tureen.client.client_errors import OverloadedError, RefusedError, ServerError
from tureen.errors import ImageTooLargeError, UnreadableImageError

MODEL = {"model": "digits", "version": "0123", "revision": 2, "calibrated": True}
RESULT = {
    "beta": 0.7,
    "strength": 0.5,
    "beta_source": "request",
    "predictions": [{"label": "7", "index": 7, "probability": 0.9}],
}
PROBLEM = {
    "type": "about:blank",
    "title": "The image cannot be decoded",
    "status": 400,
    "code": "undecodable_image",
    "detail": "the image cannot be decoded",
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_types_have_the_fields_of_the_responses_of_the_server():
    assert set(ServedClassification.model_fields) == set(ClassifyResponse.model_fields)
    assert set(ServedSweep.model_fields) == set(SweepResponse.model_fields)


def test_a_classification_has_the_values_of_the_response_and_ignores_fields_of_later_versions():
    one = parse_classification(json.dumps({**MODEL, **RESULT, "later": 1}).encode())
    assert (one.model, one.revision, one.beta, one.beta_source) == ("digits", 2, 0.7, "request")
    assert one.predictions[0].label == "7"


def test_several_results_have_the_model_of_the_response_and_a_problem_keeps_its_place():
    body = json.dumps({**MODEL, "results": [{"problem": PROBLEM}, RESULT]}).encode()
    problem, one = parse_results(body, 2)
    assert problem == ImageProblem(code="undecodable_image", status=400, detail="the image cannot be decoded")
    assert (one.version, one.calibrated, one.strength) == ("0123", True, 0.5)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"null", b'{"results": [null]}', b'{"results": []}'])
def test_a_body_of_another_form_is_a_server_error(body):
    for parse in (parse_classification, parse_sweep, lambda body: parse_results(body, 1)):
        with pytest.raises(ServerError) as raised:
            parse(body)
        assert raised.value.code == "unexpected_response"


def test_another_number_of_results_is_a_server_error():
    with pytest.raises(ServerError):
        parse_results(json.dumps({**MODEL, "results": [RESULT]}).encode(), 2)


def test_an_error_has_the_code_and_detail_of_the_problem_and_the_headers_of_the_response():
    body = json.dumps({**PROBLEM, "code": "overloaded", "detail": "too much work"}).encode()
    with pytest.raises(OverloadedError) as raised:
        check_status(429, {"retry-after": "3", "x-request-id": "abc"}, body)
    error = raised.value
    assert (error.code, error.status, error.detail) == ("overloaded", 429, "too much work")
    assert (error.retry_after_s, error.request_id) == (3.0, "abc")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"code": 7, "detail": null}'])
def test_a_response_without_a_problem_is_an_error_with_its_status(body):
    with pytest.raises(RefusedError, match="status 404 and no problem of Tureen") as raised:
        check_status(404, {}, body)
    assert (raised.value.code, raised.value.status) == ("unexpected_response", 404)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(text, seconds):
    assert parse_retry_after(text, NOW) == seconds


def test_the_codes_of_images_are_codes_of_the_server():
    assert {*IMAGE_CODES, *TOO_LARGE_CODES} <= {kind.code for kind in PROBLEM_TYPES.values()}


def test_an_image_that_is_refused_or_cannot_be_read_becomes_a_problem():
    refused = RefusedError("damaged", code="undecodable_image", status=400)
    assert is_problem_of_image(refused)
    assert not is_problem_of_image(RefusedError("unknown key", code="unknown_api_key", status=401))
    assert problem_of_image(refused) == ImageProblem(code="undecodable_image", status=400, detail="damaged")
    missing = problem_of_image(UnreadableImageError("a.jpg", "No such file"))
    assert (missing.code, missing.status) == ("unreadable_image", None)
    assert problem_of_image(ImageTooLargeError("bytes", 7)).code == "image_too_large"
