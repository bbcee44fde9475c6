"""Each exception becomes the response of its row in the table, in the dialect of its path."""

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.errors import InvalidParameterError, OverloadedError
from serve.http.error_handlers import add_error_handlers
from serve.http.problems import MEDIA_TYPE
from tureen.errors import TureenError

ORIGIN = "https://pages.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST"}
ERRORS = {
    "overloaded": OverloadedError(7),
    "parameter": InvalidParameterError("top_k is 0"),
    "unlisted": TureenError("a secret of ours"),
}


@pytest.fixture(scope="module")
def client():
    app = FastAPI(docs_url=None, openapi_url=None)
    add_error_handlers(app, frozenset({ORIGIN}))

    @app.get("/errors/{name}")
    @app.get("/v2/errors/{name}")
    async def fail(name: str) -> None:
        raise ERRORS[name]

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/errors/overloaded", 429, "overloaded"),
        ("GET", "/errors/parameter", 422, "invalid_parameter"),
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/errors/parameter", 405, "method_not_allowed"),
        ("OPTIONS", "/errors/parameter", 405, "method_not_allowed"),
    ],
)
def test_an_error_is_a_problem_with_a_stable_code(client, method, path, status, code):
    response = client.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)
    assert response.json()["code"] == code
    assert response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/errors/overloaded", 429),
        ("GET", "/v2/errors/parameter", 400),  # the protocol has no 422
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/errors/parameter", 405),
    ],
)
def test_an_error_of_the_inference_protocol_has_its_body(client, method, path, status):
    response = client.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("prefix", ["", "/v2"])
def test_the_headers_of_an_error_are_kept(client, prefix):
    assert client.get(f"{prefix}/errors/overloaded").headers["retry-after"] == "7"
    assert client.post(f"{prefix}/errors/parameter").headers["allow"] == "GET"


@pytest.mark.parametrize("prefix", ["", "/v2"])
def test_the_message_of_an_error_outside_the_table_is_not_sent(client, prefix):
    response = client.get(f"{prefix}/errors/unlisted")
    assert response.status_code == 500
    assert "secret" not in response.text


def test_a_preflight_request_of_an_allowed_origin_is_granted(client):
    response = client.options("/errors/parameter", headers=PREFLIGHT)
    assert response.status_code == 204
    assert "POST" in response.headers["access-control-allow-methods"]


@pytest.mark.parametrize("headers", [{**PREFLIGHT, "origin": "https://other.example"}, {"origin": ORIGIN}])
def test_another_options_request_is_a_405(client, headers):
    assert client.options("/errors/parameter", headers=headers).status_code == 405
