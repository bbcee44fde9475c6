"""The errors of other packages, as a user reads them."""

from types import SimpleNamespace

import pytest

from tureen.errors import BundleTransferError, EngineError, UnreachableHostError
from tureen.remote.address import parse_address
from tureen.remote.transfer_errors import response_status, transfer_error, transfer_errors

ADDRESS = parse_address("s3://bucket/digits")


def with_response(status, *, as_dict):
    error = ValueError("a library's text")
    error.response = (
        {"ResponseMetadata": {"HTTPStatusCode": status}} if as_dict else SimpleNamespace(status_code=status)
    )
    return error


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, BundleTransferError, "needs credentials"),
        (403, BundleTransferError, "refuses these credentials"),
        (404, BundleTransferError, "there is no bundle at"),
        (429, UnreachableHostError, "status 429"),
        (502, UnreachableHostError, "status 502"),
    ],
)
def test_the_status_of_a_response_decides_also_in_a_cause(status, kind, message, as_dict):
    error = OSError("outer")
    error.__cause__ = with_response(status, as_dict=as_dict)
    assert response_status(error) == status
    mapped = transfer_error(ADDRESS, error)
    assert type(mapped) is kind
    assert message in str(mapped)
    assert "a library's text" not in str(mapped)
    assert mapped.is_missing == (status == 404)


@pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError(), ConnectionResetError()])
def test_a_failed_connection_is_an_unreachable_host(error):
    assert type(transfer_error(ADDRESS, error)) is UnreachableHostError


def test_errors_of_a_file_system_are_named_and_any_other_has_its_class():
    assert "404" in str(transfer_error(ADDRESS, FileNotFoundError()))
    assert "403" in str(transfer_error(ADDRESS, PermissionError()))
    assert "ZeroDivisionError" in str(transfer_error(ADDRESS, ZeroDivisionError()))


def test_an_error_of_tureen_stays_as_it_is():
    with pytest.raises(EngineError), transfer_errors(ADDRESS):
        raise EngineError("its message")
