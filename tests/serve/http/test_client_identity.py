import pytest
from starlette.requests import Request

from serve.control.beta_choice import ClientIdentity
from serve.errors import MalformedRequestError
from serve.http.client_identity import client_identity_of

ADDRESS = "192.0.2.7"


def request(*headers):
    return Request({"type": "http", "headers": list(headers), "client": (ADDRESS, 1234)})


@pytest.mark.parametrize(
    ("headers", "identity"),
    [
        ([], ClientIdentity(None, None, ADDRESS)),
        ([(b"x-api-key", b"key")], ClientIdentity(None, "key", "key")),
        ([(b"x-request-key", b"user 1")], ClientIdentity(None, None, "user 1")),
        ([(b"x-request-key", b"user 1"), (b"x-api-key", b"key")], ClientIdentity(None, "key", "user 1")),
    ],
)
def test_the_canary_key_is_the_request_key_else_the_api_key_else_the_address(headers, identity):
    assert client_identity_of(request(*headers)) == identity


def test_the_policy_is_the_one_of_the_parameter():
    assert client_identity_of(request(), "uploads").policy == "uploads"


@pytest.mark.parametrize("name", [b"x-api-key", b"x-request-key"])
def test_a_header_that_comes_twice_is_refused(name):
    with pytest.raises(MalformedRequestError, match="2 times"):
        client_identity_of(request((name, b"a"), (name, b"b")))
