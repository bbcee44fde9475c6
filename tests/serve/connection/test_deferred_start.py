"""A server whose application remembers the size of the first message that it receives."""

import contextlib
import socket
import threading

import pytest
import uvicorn

from serve.connection.deferred_start import START_BYTES, DeferredStartProtocol
from serve.connection.graceful_shutdown import DrainingState
from tests.patience import DEADLINE_S


class Application:
    def __init__(self):
        self.first_messages = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        self.first_messages.append((len(message["body"]), message["more_body"]))
        while message["more_body"]:
            message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def application():
    return Application()


@pytest.fixture
def client(application):
    config = uvicorn.Config(
        application, http=DeferredStartProtocol, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    server.server_state = DrainingState()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    with contextlib.closing(socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)) as connection:
        yield connection
    server.should_exit = server.force_exit = True
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def head(length, *lines):
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: a", b"Content-Length: %d" % length, *lines, b"", b""])


def test_the_task_starts_with_the_whole_body_of_a_client_that_sends_it_in_pieces(application, client):
    client.sendall(head(30))
    for _ in range(30):
        client.sendall(b"x")
    assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert application.first_messages == [(30, False)]


def test_the_task_starts_before_the_end_of_a_large_body(application, client):
    length = 4 * START_BYTES
    client.sendall(head(length) + bytes(length))
    assert client.recv(1000).startswith(b"HTTP/1.1 200")
    ((size, more_body),) = application.first_messages
    assert START_BYTES <= size < length
    assert more_body


def test_the_task_of_a_client_that_waits_for_100_continue_starts_with_the_head(application, client):
    client.sendall(head(2, b"Expect: 100-continue"))
    assert client.recv(1000).startswith(b"HTTP/1.1 100")
    client.sendall(b"ok")
    assert client.recv(1000).startswith(b"HTTP/1.1 200")
