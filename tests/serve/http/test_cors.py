"""Pages of an allowed origin may read every response of the public listener, and none of the admin listener."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve.http.cors import cors_headers
from tests.serve.admin.conftest import Operator
from tests.serve.connection.test_http_connection import Listening
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

APP = "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


@given(origin=st.sampled_from([APP, "https://evil.example", "null", f"{APP}.evil.example", f"{APP}:8443"]) | st.text())
def test_only_an_origin_of_the_setting_is_allowed_and_caches_keep_origins_apart(origin):
    headers = dict(cors_headers(frozenset({APP}), [(b"origin", origin.encode("latin-1", "replace"))]))
    assert (headers.get(b"access-control-allow-origin") == APP.encode()) == (origin == APP)
    assert (b"access-control-allow-origin" in headers) == (origin == APP)
    assert headers[b"vary"] == b"Origin"


@pytest.fixture
def image():
    pixels = load_bundle(EXAMPLES / "cifar10").golden.pixels[0]
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def allowed(headers):
    return headers["Access-Control-Allow-Origin"]


def test_a_page_of_an_allowed_origin_may_read_every_response(start_server, tmp_path, image):
    server = start_server("--state-dir", tmp_path / "state", "--cors-origins", f"{APP}, http://localhost:5173")
    server.wait_until_ready()
    requests = [
        ("POST", "/classify", image, 200),
        ("POST", "/classify", b"no image", 415),
        ("GET", "/nowhere", None, 404),
        ("GET", "/readyz", None, 200),
        ("POST", "/v2/models/cifar10/infer", b"{}", 400),
        ("GET", "/" + 70_000 * "x", None, 431),  # refused before it reaches the application
    ]
    for method, path, body, expected in requests:
        status, headers, _ = server.ask(method, path, body, {"Origin": APP})
        assert (status, allowed(headers), headers["Vary"]) == (expected, APP, "Origin"), path[:20]
        assert "Server-Timing" in headers["Access-Control-Expose-Headers"]
        assert "X-Request-ID" in headers["Access-Control-Expose-Headers"]
        status, headers, _ = server.ask(method, path, body, {"Origin": "https://evil.example"})
        assert (status, allowed(headers), headers["Vary"]) == (expected, None, "Origin"), path[:20]
    status, headers, body = server.ask("OPTIONS", "/classify", None, {"Origin": APP, **PREFLIGHT})
    assert (status, body, allowed(headers)) == (204, b"", APP)
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert {"X-API-Key", "Content-Type"} <= set(headers["Access-Control-Allow-Headers"].split(", "))
    for sent in ({"Origin": "https://evil.example", **PREFLIGHT}, {"Origin": APP}, {}):
        status, headers, body = server.ask("OPTIONS", "/classify", None, sent)
        assert (status, json.loads(body)["code"]) == (405, "method_not_allowed")
        assert "Access-Control-Allow-Methods" not in headers
    assert server.ask("OPTIONS", "/nowhere", None, {"Origin": APP, **PREFLIGHT})[0] == 404
    operator = Operator(server, tmp_path / "state")
    status, headers, _ = operator.ask("OPTIONS", "/admin/beta", origin=APP, **PREFLIGHT)
    assert (status, allowed(headers), headers["Vary"]) == (405, None, None)
    status, headers, _ = operator.ask("GET", "/admin/beta", origin=APP)
    assert (status, allowed(headers), headers["Vary"]) == (200, None, None)


def test_any_origin_is_allowed_by_a_star_and_none_by_default(start_server, tmp_path):
    server = start_server("--admin-port", 0, "--state-dir", tmp_path / "one", "--cors-origins", "*")
    other = start_server("--admin-port", 0, "--state-dir", tmp_path / "other")
    server.wait_until_ready()
    other.wait_until_ready()
    for sent in (PREFLIGHT, {}):
        status, headers, _ = server.ask("OPTIONS", "/classify", None, {"Origin": APP, **sent})
        assert (status, allowed(headers), headers["Vary"]) == (204 if sent else 405, "*", None)
        status, headers, _ = other.ask("OPTIONS", "/classify", None, {"Origin": APP, **sent})
        assert (status, allowed(headers), headers["Vary"]) == (405, None, None)


def test_a_refusal_for_overload_may_be_read_too_also_behind_another_request():
    with Listening(cors_origins=frozenset({APP})) as listening, listening.connect() as client:
        head = b" HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example.com\r\n\r\n"
        client.send(b"GET /slow" + head + b"POST /full" + head)
        for expected in (200, 429):
            status, headers, _ = client.response()
            assert (status, headers["access-control-allow-origin"]) == (expected, APP)
            assert "Retry-After" in headers["access-control-expose-headers"]
