"""Raw sockets against uvicorn with HttpConnection and a small application: hostile, malformed and slow requests."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn

from serve.connection.graceful_shutdown import DrainingState
from serve.connection.request_rules import PROBES
from serve.connection.uvicorn_config import uvicorn_config
from serve.errors import OverloadedError
from serve.http.request_log import RequestLogMiddleware
from serve.limits import ConnectionLimits
from serve.telemetry.metrics import Metrics

WAIT_S = 20  # how long anything may take before a test fails
QUICK = {
    "head_timeout_s": 0.4,
    "body_timeout_s": 1.5,
    "body_grace_s": 0.4,
    "min_body_rate": 1000,
    "send_timeout_s": 0.5,
    "linger_s": 0.5,
}
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def echo(scope, receive, send):
    """Responds with method, path and body size. /early responds before it reads the body, /big with 20 MB.

    /headers responds with the names of the headers.
    """
    size = 0
    if scope["path"] != "/early":
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    if scope["path"] == "/headers":
        body = b" ".join(name for name, _ in scope["headers"])
    elif scope["path"] == "/big":
        body = b"x" * 20_000_000
    else:
        body = f"{scope['method']} {scope['path']} {size}".encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


def refuse_overload(method, path):
    if path == b"/defect":
        raise ZeroDivisionError
    return ("/full", OverloadedError(7)) if path in (b"/full", b"/v2/full") else None


class Listening:
    """The server, its port and its metrics."""

    def __init__(self, keep_alive_s=5, **limits):
        self.metrics = Metrics()
        config = uvicorn_config(
            RequestLogMiddleware(echo, self.metrics),
            limits=ConnectionLimits(**limits),
            check_admission=refuse_overload,
            metrics=self.metrics,
            has_lifespan=False,
            keep_alive_s=keep_alive_s,
            drain_timeout_s=WAIT_S,
        )
        self.server = uvicorn.Server(config)
        self.server.server_state = DrainingState()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()

    def connect(self):
        return contextlib.closing(Client(self.port))

    def ask(self, data):
        """Returns every response to these bytes until the server closes the connection."""
        with self.connect() as client:
            client.send(data)
            return client.responses_until_closed()

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def close(self):
        self.file.close()
        self.socket.close()

    def response(self, *, is_head=False):
        """Returns status, headers and body of the next response; None if the server has closed the connection."""
        line = self.file.readline()
        if not line:
            return None
        headers = {}
        while (header := self.file.readline().strip()) != b"":
            name, _, value = header.decode().partition(": ")
            headers[name] = value
        body = b"" if is_head else self.file.read(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers, body

    def responses_until_closed(self):
        responses = []
        while (response := self.response()) is not None:
            responses.append(response)
        return responses


def is_problem(response, status, code):
    found, headers, body = response
    assert (found, json.loads(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/problem+json"
    assert len(headers["x-request-id"]) == 16
    assert "date" in headers
    return headers


@pytest.fixture(scope="module")
def usual():
    with Listening() as server:
        yield server


@pytest.fixture(scope="module")
def quick():
    with Listening(keep_alive_s=1, **QUICK) as server:
        yield server


# Malformed requests


HOST = b"Host: localhost\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\na",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcX\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\n0\n\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET @evil/docs HTTP/1.1\r\n" + HOST + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x/docs?\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost:80:80\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT /hello HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
    ],
    ids=range(36),
)
def test_a_malformed_request_gets_one_400_and_bytes_after_it_are_never_a_request(usual, data):
    before = usual.count("tureen_rejections_total", code="malformed_request")
    (response,) = usual.ask(data + GET)
    assert is_problem(response, 400, "malformed_request")["connection"] == "close"
    assert usual.count("tureen_rejections_total", code="malformed_request") == before + 1


def test_a_valid_request_before_a_malformed_one_gets_its_response(usual):
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    assert [response[2] for response in usual.ask(slow + b"GET /\0 HTTP/1.1\r\n\r\n")] == [b"GET /slow 0"]


def test_pipelined_requests_get_responses_in_order_refused_ones_too(usual):
    full = b"POST /full HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    last = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    responses = usual.ask(full + slow + full + GET + full + last + GET)
    assert [response[0] for response in responses] == [429, 200, 429, 200, 429, 200]
    assert [responses[i][2] for i in (1, 3, 5)] == [b"GET /slow 0", b"GET /hello 0", b"GET /last 0"]


def test_too_many_pipelined_requests_end_the_connection(usual):
    responses = usual.ask(GET * 1000)
    assert 0 < len(responses) <= 65


OFFER = HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"  # as curl's


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("piece", [1, 100, 1000])
def test_an_offer_to_upgrade_is_declined_and_the_request_with_its_body_served(usual, body, piece):
    data = b"POST /hello HTTP/1.1\r\n" + OFFER + body + b"GET /full HTTP/1.1\r\n" + OFFER + b"\r\n" + GET
    with usual.connect() as client:
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
        assert client.response()[2] == b"POST /hello 3"
        is_problem(client.response(), 429, "overloaded")
        assert client.response()[2] == b"GET /hello 0"


def test_an_internal_defect_is_logged_and_not_reported_as_a_client_error(usual, caplog):
    (response,) = usual.ask(b"POST /defect HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + GET)
    is_problem(response, 500, "internal_error")
    assert caplog.records[0].exc_info[0] is ZeroDivisionError


def test_a_trailer_is_no_header(usual):
    trailers = b"X-Request-ID: trailer\r\nHost: evil\r\n"
    with usual.connect() as client:
        client.send(CHUNKED.replace(b" / ", b" /headers ") + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n" + GET)
        assert client.response()[2] == b"host transfer-encoding"
        assert client.response()[0] == 200


@pytest.mark.parametrize("framing", [b"0\r\nX: ", b"1;"])
def test_a_body_whose_framing_never_ends_gets_400(usual, framing):
    with usual.connect() as client:
        client.send(CHUNKED + framing)
        with contextlib.suppress(OSError):
            for _ in range(200):
                client.send(b"a" * 1000)
                time.sleep(0.001)
        is_problem(client.response(), 400, "malformed_request")


def test_the_framing_of_many_small_chunks_is_no_fault(usual):
    with usual.connect() as client:
        client.send(CHUNKED.replace(b" / ", b" /hello "))
        for _ in range(60):
            client.send(b"00000001;a\r\na\r\n" * 1000)
        client.send(b"0\r\n\r\n")
        assert client.response()[2] == b"POST /hello 60000"


def test_http_1_0_gets_a_response_and_is_closed(usual):
    (response,) = usual.ask(b"GET /hello HTTP/1.0\r\n\r\n")
    assert response[0] == 200


# Limits in size


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 900_000,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 257 + b"\r\n",
    ],
    ids=["value", "endless", "target", "count"],
)
def test_a_large_head_gets_431(usual, head):
    (response,) = usual.ask(head)
    is_problem(response, 431, "head_too_large")


def test_a_head_within_the_limit_passes_and_a_body_does_not_count(usual):
    head = b"POST /hello HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 60_000 + b"\r\nContent-Length: 300000\r\n\r\n"
    with usual.connect() as client:
        client.send(head + b"b" * 300_000 + head[:100])
        assert client.response()[2] == b"POST /hello 300000"
        client.send(head[100:] + b"b" * 300_000)
        assert client.response()[2] == b"POST /hello 300000"


def test_one_chunk_too_many_gets_413():
    with Listening(max_chunks=100) as server:
        (response,) = server.ask(CHUNKED + b"1\r\na\r\n" * 101)
        assert is_problem(response, 413, "too_many_chunks")["connection"] == "close"
        with server.connect() as client:
            client.send(CHUNKED + b"1\r\na\r\n" * 99 + b"0\r\n\r\n")
            assert client.response()[2] == b"POST / 99"


def test_connections_beyond_the_limit_get_503_and_later_ones_are_accepted_again():
    with Listening(max_connections=3, max_probe_connections=0) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(3)]
            for client in clients:
                client.send(GET)
                assert client.response()[0] == 200
            (response,) = server.ask(GET)
            headers = is_problem(response, 503, "too_many_connections")
            assert int(headers["retry-after"]) >= 1
            clients[0].send(GET)
            assert clients[0].response()[0] == 200
        deadline = time.monotonic() + WAIT_S
        while server.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))[0][0] != 200:
            assert time.monotonic() < deadline


def request_for(path):
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_only_probes_are_served_at_the_limit_of_connections():
    with Listening(max_connections=2, max_probe_connections=2) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(server.connect())
            client.send(GET)
            assert client.response()[0] == 200
        for _ in range(5):
            for path in sorted(PROBES):
                (response,) = server.ask(request_for(path))
                assert (response[0], response[1]["connection"]) == (200, "close")
            for path in (b"/hello", b"/full", b"/healthz/more"):
                (response,) = server.ask(request_for(path))
                is_problem(response, 503, "too_many_connections")


def test_a_silent_connection_does_not_keep_the_place_of_a_probe_for_long():
    with (
        Listening(max_connections=1, max_probe_connections=1, probe_timeout_s=0.3) as server,
        server.connect() as first,
    ):
        first.send(GET)
        assert first.response()[0] == 200
        with server.connect() as silent:
            (response,) = silent.responses_until_closed()
            is_problem(response, 408, "head_timeout")
        deadline = time.monotonic() + WAIT_S
        while server.ask(request_for(b"/readyz"))[0][0] != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_a_trusted_host_is_served_with_any_port(host):
    with Listening(hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as server, server.connect() as client:
        client.send(f"GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert client.response()[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.2", "[::2]", "localhost."])
def test_another_host_gets_421(host):
    with Listening(hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as server:
        (response,) = server.ask(f"GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        is_problem(response, 421, "untrusted_host")


# Refusals on the head alone


def test_a_refused_body_is_dropped_and_the_connection_kept(usual):
    before = usual.count("tureen_requests_total", route="/full", method="POST", status="429")
    with usual.connect() as client:
        for _ in range(3):
            client.send(b"POST /full HTTP/1.1\r\n" + HOST + b"X-Request-ID: mine\r\nContent-Length: 5000000\r\n\r\n")
            status, headers, _ = client.response()  # before the body
            assert (status, headers["retry-after"], headers["x-request-id"]) == (429, "7", "mine")
            assert "connection" not in headers
            client.send(b"a" * 5_000_000)
        client.send(b"POST /full HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n")
        is_problem(client.response(), 429, "overloaded")
        client.send(GET)
        assert client.response()[2] == b"GET /hello 0"
    assert usual.count("tureen_requests_total", route="/full", method="POST", status="429") == before + 4


def test_a_client_that_sends_its_body_before_it_reads_gets_the_refusal_and_no_reset():
    with Listening(max_discarded_bytes=10_000_000) as server:
        for length, is_kept in ((9_000_000, True), (11_000_000, False)):
            with server.connect() as client:
                client.send(f"POST /full HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
                client.send(b"a" * 9_000_000)
                status, headers, _ = client.response()
                assert (status, "connection" not in headers) == (429, is_kept)


def test_a_response_before_the_body_reaches_a_client_that_requested_close(usual):
    (response,) = usual.ask(
        b"POST /early HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 9000000\r\n\r\n" + b"a" * 9_000_000
    )
    assert response[2] == b"POST /early 0"


def test_a_client_that_expects_100_gets_the_refusal_or_100(usual):
    head = b"POST %b HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    (response,) = usual.ask(head % b"/full")
    assert is_problem(response, 429, "overloaded")["connection"] == "close"
    (response,) = usual.ask(head % b"/early")
    assert response[1]["connection"] == "close"
    with usual.connect() as client:
        client.send(head % b"/hello")
        assert client.response()[0] == 100
        client.send(b"abc")
        assert client.response()[2] == b"POST /hello 3"


def test_a_refusal_below_v2_has_the_format_of_the_protocol(usual):
    with usual.connect() as client:
        client.send(b"POST /v2/full HTTP/1.1\r\n" + HOST + b"\r\n")
        status, headers, body = client.response()
        assert (status, headers["retry-after"], list(json.loads(body))) == (429, "7", ["error"])


def test_a_refusal_of_head_has_no_body(usual):
    with usual.connect() as client:
        client.send(b"HEAD /full HTTP/1.1\r\n" + HOST + b"\r\n")
        assert client.response(is_head=True)[0] == 429
        client.send(GET)
        assert client.response()[2] == b"GET /hello 0"


# Slow clients


def test_a_head_that_does_not_arrive_gets_408(quick):
    assert [response[0] for response in quick.ask(b"")] == [408]
    with quick.connect() as client:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in GET[:-1]:
                client.send(bytes([byte]))
                time.sleep(0.05)
        is_problem(client.response(), 408, "head_timeout")
        assert time.monotonic() - began > QUICK["head_timeout_s"]


@pytest.mark.parametrize("start", [b"GET /hel", b"\r\n", b"\r\n\r\n"])
def test_the_deadline_counts_for_the_second_head_too(quick, start):
    with quick.connect() as client:
        client.send(GET)
        assert client.response()[0] == 200
        time.sleep(QUICK["head_timeout_s"] / 2)
        client.send(start)
        is_problem(client.response(), 408, "head_timeout")
        assert client.response() is None


@pytest.mark.parametrize("path", [b"/hello", b"/full"])
def test_an_idle_connection_is_closed_without_a_word(quick, path):
    """Even where the response went out before the body was in, so that uvicorn's own clock is stopped by the body."""
    with quick.connect() as client:
        client.send(b"POST %b HTTP/1.1\r\n" % path + HOST + b"Content-Length: 3\r\n\r\na")
        time.sleep(0.1)
        client.send(b"bc")
        assert client.response() is not None
        assert client.response() is None


def test_a_slow_body_gets_408_and_is_counted_once_with_that_status(quick):
    for length in (b"Content-Length: 5000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        before = quick.count("tureen_requests_total", route="unmatched", method="POST", status="408")
        with quick.connect() as client:
            client.send(b"POST /hello HTTP/1.1\r\n" + HOST + length)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    client.send(b"1\r\na\r\n")
                    time.sleep(0.05)
            assert is_problem(client.response(), 408, "body_timeout")["connection"] == "close"
            assert client.response() is None
        assert quick.count("tureen_requests_total", route="unmatched", method="POST", status="408") == before + 1


def test_a_body_at_the_least_rate_passes_unless_it_takes_too_long(quick):
    def ask(size, pieces):
        with quick.connect() as client:
            client.send(f"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: {size * pieces}\r\n\r\n".encode())
            with contextlib.suppress(OSError):
                for _ in range(pieces):
                    client.send(b"a" * size)
                    time.sleep(0.1)
            return client.response()

    assert ask(200, 10)[2] == b"POST /hello 2000"
    is_problem(ask(1000, 40), 408, "body_timeout")


def test_a_refused_body_that_trickles_ends_the_connection(quick):
    with quick.connect() as client:
        client.send(b"POST /full HTTP/1.1\r\n" + HOST + b"Content-Length: 5000\r\n\r\na")
        assert client.response()[0] == 429
        assert client.response() is None


def test_a_client_that_does_not_read_its_response_is_disconnected():
    with Listening(**QUICK) as server, server.connect() as client:
        client.send(b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n")
        assert client.file.read(4) == b"HTTP"
        deadline = time.monotonic() + WAIT_S
        while server.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_client_that_sends_and_never_reads_is_disconnected(quick):
    def ask_for_ever(client):
        while True:
            client.send((b"POST /full HTTP/1.1\r\n" + HOST + b"\r\n") * 20)

    with quick.connect() as client, pytest.raises(OSError, match=r"reset|pipe"):
        ask_for_ever(client)


def test_an_incomplete_request_ends_the_connection(quick):
    for start in (b"", b"GET /", b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"):
        with quick.connect() as client:
            client.send(start)
            client.socket.shutdown(socket.SHUT_WR)
            assert client.response() is None


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_a_normal_client_is_served_among_slow_clients(count):
    with Listening(**QUICK) as server, contextlib.ExitStack() as stack:
        tricklers = [stack.enter_context(server.connect()) for _ in range(count)]
        for trickler in tricklers:
            trickler.send(b"POST /hello HTTP/1.1\r\n" + HOST + b"Content-Length: 5000\r\n\r\n")
        normal = stack.enter_context(server.connect())
        normal.send(b"POST /hello HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc")
        assert normal.response()[2] == b"POST /hello 3"
        with ThreadPoolExecutor(8) as pool:
            for response in pool.map(Client.response, tricklers):
                is_problem(response, 408, "body_timeout")


def wait_until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("path", "count"), [(b"/hello", 100_000), (b"/early", 400_000)])
def test_a_connection_that_has_ended_holds_no_body(path, count):
    with Listening() as server:
        with server.connect() as client:
            client.send(b"POST %b HTTP/1.1\r\n%bContent-Length: 9000000\r\n\r\n" % (path, HOST) + bytes(count))
            open_connections = server.server.server_state.connections
            wait_until(lambda: any(one.cycle and one.cycle.body for one in list(open_connections)))
            (connection,) = open_connections
        wait_until(lambda: not open_connections)
        assert not connection.cycle.body


def test_a_client_that_leaves_during_pipelined_requests_is_no_internal_error():
    with Listening() as server:
        with server.connect() as client:
            client.send(GET.replace(b"hello", b"slow") + GET)
            wait_until(lambda: any(one.pipeline for one in list(server.server.server_state.connections)))
        wait_until(lambda: server.count("tureen_requests_total", route="unmatched", method="GET", status="200"))
        assert server.count("tureen_rejections_total", code="internal_error") == 0


FULL = b"POST /full HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
DELAY_S = 0.3


def seconds_of_refusals(client, count, request=FULL):
    """The seconds until each of `count` refusals of requests that follow each other immediately."""
    seconds = []
    for _ in range(count):
        started = time.monotonic()
        client.send(request)
        assert client.response()[0] == 429
        seconds.append(time.monotonic() - started)
    return seconds


def test_the_refusals_of_a_client_that_does_not_wait_are_delayed_and_counted_once():
    with Listening(refusal_delay_s=DELAY_S) as server, server.connect() as client:
        _, *later = seconds_of_refusals(client, 3)
        assert all(seconds >= DELAY_S for seconds in later)
        assert server.count("tureen_rejections_total", code="overloaded") == 3
        client.send(GET)
        assert client.response()[0] == 200


def test_a_client_that_does_not_wait_delays_no_other_client():
    with Listening(refusal_delay_s=WAIT_S) as server, server.connect() as impatient, server.connect() as other:
        seconds_of_refusals(impatient, 1)
        impatient.send(FULL)
        other.send(GET)
        assert other.response()[0] == 200
        seconds_of_refusals(other, 1)


@pytest.mark.parametrize("limits", [{"refusal_delay_s": 0}, {"refusal_delay_s": WAIT_S, "max_delayed_refusals": 0}])
def test_no_refusal_is_delayed_at_the_limit_or_without_a_delay(limits):
    with Listening(**limits) as server, server.connect() as client:
        seconds_of_refusals(client, 5)


def test_a_delayed_refusal_precedes_the_response_to_a_pipelined_request():
    with Listening(refusal_delay_s=WAIT_S) as server, server.connect() as client:
        client.send(FULL)
        assert client.response()[0] == 429
        client.send(FULL + GET)
        assert [client.response()[0] for _ in range(2)] == [429, 200]


def test_a_delayed_refusal_of_a_large_body_leaves_the_connection_open():
    body = bytes(2**20)
    request = b"POST /full HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Listening(refusal_delay_s=DELAY_S) as server, server.connect() as client:
        _, *later = seconds_of_refusals(client, 3, request)
        assert all(seconds >= DELAY_S for seconds in later)


def test_a_delayed_refusal_is_sent_before_a_damaged_body_ends_the_connection():
    chunked = b"POST /full HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno chunk"
    with Listening(refusal_delay_s=WAIT_S) as server, server.connect() as client:
        seconds_of_refusals(client, 1)
        client.send(chunked)
        assert [status for status, *_ in client.responses_until_closed()] == [429]
