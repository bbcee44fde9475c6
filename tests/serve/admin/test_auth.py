"""The operators' credentials, query parameters and JSON bodies, on routes without settings or jobs."""

import asyncio
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.testclient import TestClient

from serve.admin.auth import (
    MAX_BODY_BYTES,
    MAX_BODY_DEPTH,
    Operator,
    authenticate,
    read_json_body,
    refuse_unknown_parameters,
)
from serve.control.credential_store import Credential
from serve.errors import InvalidParameterError
from serve.http.error_handlers import add_error_handlers
from serve.http.request_log import access_fields


class FakeOperations:
    """Finds two credentials, whose secrets are their names, and keeps the secrets that it gets."""

    def __init__(self):
        self.secrets = []

    async def find_credential(self, secret):
        self.secrets.append(secret)
        role = {"ada": "operate", "dashboard": "read"}.get(secret)
        return None if role is None else Credential(secret, role, "", "")


@pytest.fixture
def operations():
    return FakeOperations()


@pytest.fixture
def client(operations):
    app = FastAPI()
    app.state.operations = operations
    add_error_handlers(app, frozenset())
    router = APIRouter(dependencies=[Depends(authenticate), Depends(refuse_unknown_parameters)])

    @router.get("/who")
    async def who(request: Request, credential: Annotated[Credential, Depends(authenticate)], limit: int = 1) -> dict:
        return {"name": credential.name, "logged": access_fields(request.scope)["who"]}

    @router.post("/change")
    async def change(request: Request, operator: Operator) -> dict:
        return {"who": operator.name, "body": await read_json_body(request)}

    app.include_router(router)
    return TestClient(app, headers={"Authorization": "Bearer ada"})


def refused(response):
    return response.status_code, response.json()["code"]


@pytest.mark.parametrize("header", ["Bearer ada", "bearer ada", "BEARER   ada "])
def test_the_secret_of_a_bearer_token_gives_its_credential_and_its_name_is_logged(client, header):
    assert client.get("/who", headers={"Authorization": header}).json() == {"name": "ada", "logged": "ada"}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic ada", "ada", "Bearerada"])
def test_a_request_without_a_known_bearer_token_is_unauthorized(client, header):
    assert refused(client.get("/who", headers={"Authorization": header})) == (401, "unauthorized")


def test_a_request_without_the_header_is_unauthorized(client):
    del client.headers["Authorization"]
    assert refused(client.get("/who")) == (401, "unauthorized")


def test_another_scheme_is_refused_without_a_search_for_its_secret(client, operations):
    client.get("/who", headers={"Authorization": "Basic ada"})
    assert operations.secrets == []


def test_two_authorization_headers_are_refused_even_if_the_first_is_right(client, operations):
    del client.headers["Authorization"]
    headers = [("Authorization", "Bearer ada"), ("Authorization", "Bearer wrong")]
    assert refused(client.get("/who", headers=headers)) == (400, "malformed_request")
    assert operations.secrets == []


def test_a_credential_that_may_only_read_changes_nothing(client):
    headers = {"Authorization": "Bearer dashboard"}
    assert client.get("/who", headers=headers).status_code == 200
    assert refused(client.post("/change", json={}, headers=headers)) == (403, "forbidden")
    assert client.post("/change", json={}).json()["who"] == "ada"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limt=1", "the route has no parameter 'limt'"),
        ("limit=1&dry_run=true", "the route has no parameter 'dry_run'"),
        (f"{'x' * 99}=1", f"the route has no parameter '{'x' * 40}'"),
        ("limit=1&limit=2", "the parameter limit is given more than once"),
    ],
)
def test_an_unknown_or_repeated_query_parameter_is_refused_by_name(client, query, detail):
    response = client.get(f"/who?{query}")
    assert refused(response) == (422, "invalid_parameter")
    assert response.json()["detail"] == detail
    assert client.get("/who?limit=1").status_code == 200


def test_the_query_is_checked_after_the_credential(client):
    assert refused(client.get("/who?none=1", headers={"Authorization": ""})) == (401, "unauthorized")


def nested(depth):
    return b"[" * depth + b"]" * depth


def test_a_body_is_read_up_to_its_limits_in_bytes_and_depth(client):
    text = "x" * (MAX_BODY_BYTES - 2)
    assert client.post("/change", content=f'"{text}"').json()["body"] == text
    assert client.post("/change", content=nested(MAX_BODY_DEPTH)).status_code == 200
    for content, detail in ((f'"{text}x"', "65,536 bytes"), (nested(MAX_BODY_DEPTH + 1), "4 levels deep")):
        response = client.post("/change", content=content)
        assert refused(response) == (422, "invalid_parameter")
        assert detail in response.json()["detail"]


def test_a_body_above_the_limit_is_not_read_to_its_end():
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": bytes(MAX_BODY_BYTES), "more_body": len(read) < 10}

    with pytest.raises(InvalidParameterError, match="65,536 bytes"):
        asyncio.run(read_json_body(Request({"type": "http"}, receive)))
    assert len(read) == 2
