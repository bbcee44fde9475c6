import inspect

import pytest

from serve import errors
from serve.http.problems import (
    INTERNAL,
    OIP_PROBLEM_TYPES,
    OPERATOR_PROBLEM_TYPES,
    PROBLEM_TYPES,
    headers_of,
    http_problem_type,
    is_oip,
    oip_problem_type,
    oip_response,
    problem_of,
    problem_response,
    problem_type_of,
)
from tureen.errors import ImageTooLargeError, InvalidBetaError, UnsupportedImageTypeError

NEVER_SENT = {  # bases, errors that end a command or a job, and errors of a single file
    errors.ServeError,
    errors.OipError,
    errors.ControlError,
    errors.AdminError,
    errors.JobError,
    errors.JobStoppedError,
    errors.JobInterruptedError,
    errors.UnreadableError,
    errors.SettingsFileError,
    errors.UvicornVersionError,
    errors.GrpcPortTakenError,
    errors.PortError,
}


def test_every_error_that_reaches_a_client_has_a_row():
    own = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}
    tables = PROBLEM_TYPES | OPERATOR_PROBLEM_TYPES | OIP_PROBLEM_TYPES
    without = {cls for cls in own if not any(base in tables for base in cls.__mro__)}
    assert without == NEVER_SENT


def test_a_subclass_has_the_row_of_its_nearest_base_and_an_unknown_exception_is_internal():
    assert problem_type_of(errors.SlowBodyError(1, 2)) is PROBLEM_TYPES[errors.BodyTimeoutError]
    assert problem_type_of(ZeroDivisionError()) is INTERNAL


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidParameterError("x"), 400),
        (InvalidBetaError("x"), 400),
        (UnsupportedImageTypeError("x"), 400),
        (ImageTooLargeError("bytes", 1), 413),
        (errors.OverloadedError(), 429),
        (errors.UnknownModelError("x"), 404),
        (errors.NotOfferedError("x"), 501),
        (ZeroDivisionError(), 500),
    ],
)
def test_under_v2_an_invalid_request_is_always_a_400(error, status):
    assert oip_problem_type(error).status == status


@pytest.mark.parametrize(
    ("path", "is_under"), [("/v2", True), ("/v2/nowhere", True), ("/v20", False), ("/classify", False), ("/", False)]
)
def test_only_paths_below_v2_have_errors_of_the_protocol(path, is_under):
    assert is_oip({"path": path}) is is_under


def test_a_client_that_may_retry_gets_the_time_to_wait():
    overloaded = errors.OverloadedError(7)
    respond = problem_response(problem_type_of(overloaded), str(overloaded), headers_of(overloaded))
    assert (respond.status_code, respond.headers["retry-after"]) == (429, "7")
    assert problem_response(problem_type_of(errors.NotReadyError()), "").headers["retry-after"] == "1"
    assert "retry-after" not in problem_response(INTERNAL, "").headers
    assert oip_response(problem_type_of(overloaded), "", headers_of(overloaded)).headers["retry-after"] == "7"


def test_the_text_of_an_unknown_exception_reaches_no_client():
    problem = problem_of(ZeroDivisionError("secret"))
    assert (problem.code, problem.status) == ("internal_error", 500)
    assert "secret" not in problem.model_dump_json()


def test_a_status_of_the_framework_becomes_a_code():
    assert (http_problem_type(405).code, http_problem_type(404).title) == ("method_not_allowed", "Not Found")
