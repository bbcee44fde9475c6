"""The client of the operators' listener against a server whose responses the test sets."""

import http.server
import json
import threading

import pytest

from serve.commands.admin_client import TOKEN_VARIABLE, AdminClient, RefusedError
from serve.control.state_directory import TOKEN_FILE


class Listener(http.server.ThreadingHTTPServer):
    """Keeps each request and sends one response to all.

    length: the Content-Length, if it is not that of the body.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.length = 200, b"{}", None
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def respond(self, status, body, length=None):
        self.status, self.length = status, length
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def respond(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, json.loads(body) if body else None, self.headers))
        self.send_response(self.server.status)
        self.send_header("Content-Length", self.server.length or len(self.server.body))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_PUT = do_POST = do_DELETE = respond  # noqa: N815 - the names of http.server

    def log_message(self, *arguments):
        pass


@pytest.fixture
def listener():
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(listener):
    return AdminClient(f"{listener.url}/", "a-token")


@pytest.mark.parametrize(
    ("call", "method", "path", "body", "revision"),
    [
        (lambda c: c.state(), "GET", "/admin/beta", None, None),
        (lambda c: c.state(7, 2), "GET", "/admin/beta?after=7&wait_s=2", None, None),
        (lambda c: c.change(3, {"reason": "r"}), "PUT", "/admin/beta", {"reason": "r"}, 3),
        (lambda c: c.change(3, {}, dry_run=True), "PUT", "/admin/beta?dry_run=true", {}, 3),
        (lambda c: c.rollback(3, 1, "r"), "POST", "/admin/beta/rollback", {"revision": 1, "reason": "r"}, 3),
        (
            lambda c: c.rollback(0, 0, "r", dry_run=True),
            "POST",
            "/admin/beta/rollback?dry_run=true",
            {"revision": 0, "reason": "r"},
            0,
        ),
        (lambda c: c.cancel(3, "a/b", "no & no"), "DELETE", "/admin/beta/pending/a%2Fb?reason=no+%26+no", None, 3),
        (lambda c: c.submit_job({"input": "/in"}), "POST", "/jobs", {"input": "/in"}, None),
        (lambda c: c.job("../x"), "GET", "/jobs/..%2Fx", None, None),
        (lambda c: c.job_action("x", "pause"), "POST", "/jobs/x/pause", None, None),
    ],
)
def test_a_call_sends_its_request_and_returns_the_json_of_the_response(
    listener, client, call, method, path, body, revision
):
    listener.respond(200, {"revision": 4})
    assert call(client) == {"revision": 4}
    ((sent_method, sent_path, sent_body, headers),) = listener.requests
    assert (sent_method, sent_path, sent_body) == (method, path, body)
    assert headers["Authorization"] == "Bearer a-token"
    assert headers["If-Match"] == (None if revision is None else f'"{revision}"')


@pytest.mark.parametrize(
    ("call", "path", "field"),
    [
        (lambda c: c.history(5), "/admin/beta/history?limit=5", "revisions"),
        (lambda c: c.history(5, 9), "/admin/beta/history?limit=5&before=9", "revisions"),
        (lambda c: c.verify(), "/admin/beta/history/verify", "verified"),
        (lambda c: c.jobs(5), "/jobs?limit=5", "jobs"),
        (lambda c: c.jobs(5, "failed"), "/jobs?limit=5&state=failed", "jobs"),
        (lambda c: c.job_errors("x", 5), "/jobs/x/errors?limit=5", "errors"),
        (lambda c: c.job_results("x"), "/jobs/x/results", "files"),
    ],
)
def test_a_list_is_returned_without_its_envelope(listener, client, call, path, field):
    listener.respond(200, {field: [1, 2]})
    assert call(client) == [1, 2]
    assert listener.requests[0][:2] == ("GET", path)


def test_the_token_is_the_argument_else_the_variable_else_the_file(listener, tmp_path, monkeypatch):
    (tmp_path / TOKEN_FILE).write_text("\ufefffrom-the-file\n", "utf-8")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    AdminClient(listener.url, state_dir=tmp_path).state()
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-variable")
    AdminClient(listener.url, state_dir=tmp_path).state()
    AdminClient(listener.url, "from-the-argument", tmp_path).state()
    sent = [headers["Authorization"].removeprefix("Bearer ") for _, _, _, headers in listener.requests]
    assert sent == ["from-the-file", "from-the-variable", "from-the-argument"]


def test_a_missing_token_is_refused_with_the_places_where_it_may_be(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(
        RefusedError, match=rf"--token, set {TOKEN_VARIABLE}, or run this where .*{TOKEN_FILE}"
    ) as raised:
        AdminClient("http://127.0.0.1:1", state_dir=tmp_path)
    assert raised.value.code == "no_token"


@pytest.mark.parametrize("token", ["two words", "line\nend", "tökén", "a\x00b"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token):
    with pytest.raises(RefusedError) as raised:
        AdminClient("http://127.0.0.1:1", token)
    assert raised.value.code == "wrong_token"
    assert token not in str(raised.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://host", "http://", "http://user:SECRET@host", "file:///etc"])
def test_a_url_that_is_not_that_of_a_listener_is_refused_and_not_shown(url):
    with pytest.raises(RefusedError, match="give one such as") as raised:
        AdminClient(url, "a-token")
    assert raised.value.code == "wrong_url"
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "code", "detail"),
    [
        (412, {"code": "stale_revision", "detail": "revision 3 is old"}, "stale_revision", "revision 3 is old"),
        (404, {"code": "unknown_job", "detail": "no such job"}, "unknown_job", "no such job"),
        (404, {"code": "not_found", "detail": "/docs"}, "not_found", "this port is the public listener"),
        (502, b"<html>a proxy</html>", "unknown", "the response 502 is not from Tureen"),
        (500, {"error": "no problem document"}, "unknown", "the response 500 is not from Tureen"),
        (500, ["a list"], "unknown", "the response 500 is not from Tureen"),
        (200, b"not JSON", "unreachable", "no operators' listener responds at http://127.0.0.1"),
    ],
)
def test_a_response_without_a_result_is_an_error_with_its_code_and_detail(listener, client, status, body, code, detail):
    listener.respond(status, body)
    with pytest.raises(RefusedError, match=detail) as raised:
        client.state()
    assert raised.value.code == code


def test_a_closed_port_is_unreachable_with_the_reason():
    with pytest.raises(RefusedError, match=r"responds at http://127\.0\.0\.1:1: .*refused") as raised:
        AdminClient("http://127.0.0.1:1", "a-token").state()
    assert raised.value.code == "unreachable"


def test_a_result_is_saved_whole_or_not_at_all(listener, client, tmp_path):
    listener.respond(200, b"rows")
    client.save_job_result("x", "part 1.csv", tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == b"rows"
    assert listener.requests[0][1] == "/jobs/x/results/part%201.csv"
    listener.respond(200, b"rows", length=9)
    with pytest.raises(RefusedError, match="stopped after 4 bytes") as raised:
        client.save_job_result("x", "part", tmp_path / "half")
    assert raised.value.code == "incomplete"
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
