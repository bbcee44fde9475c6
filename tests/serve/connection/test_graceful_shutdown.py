"""SIGTERM: every accepted connection gets its response, and a later one finds the port closed."""

import asyncio
import contextlib
import errno
import http.client
import io
import signal
import socket
import threading
import time
import tomllib
from collections import Counter

import numpy as np
import pytest
import uvicorn
import uvloop
from PIL import Image

from serve.connection.graceful_shutdown import DrainingProtocol, DrainingServer, check_uvicorn
from serve.connection.sockets import bind
from serve.errors import UVICORN, UvicornVersionError
from tests.patience import DEADLINE_S


def png():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


class Client(threading.Thread):
    """Sends requests without pause until the port is closed. Counts the responses, and keeps other outcomes."""

    def __init__(self, port, *, keeps_connections):
        super().__init__(daemon=True)
        self.port = port
        self.keeps_connections = keeps_connections
        self.statuses = Counter()
        self.lost = []

    def run(self):
        image = png()
        connection = None
        while True:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            try:
                connection.request("POST", "/classify?beta=0.5&top_k=1", image)
                response = connection.getresponse()
                response.read()
                self.statuses[response.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
                connection = None
                continue
            if response.will_close or not self.keeps_connections:
                connection.close()
                connection = None


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_sigterm_under_load_loses_no_request(start_server, workers, rounds):
    """Not even one that a client sends on a kept connection while it is being closed, as long as it is a busy one."""
    completed = 0
    for _ in range(rounds):
        server = start_server("--workers", workers, "--log-level", "warning", "--max-queue-ms", 60_000)
        server.wait_until_ready(workers)
        clients = [Client(server.port, keeps_connections=bool(number % 2)) for number in range(8)]
        for client in clients:
            client.start()
        before = server.metric('tureen_requests_total{method="POST",route="/classify",status="200"}') or 0
        server.wait_for(
            lambda before=before, server=server: (
                (server.metric('tureen_requests_total{method="POST",route="/classify",status="200"}') or 0)
                > before + 200
            ),
            "under load",
        )
        assert server.end() == 0, server.log_file.read_text()
        for client in clients:
            client.join(DEADLINE_S)
            assert not client.is_alive()
            assert client.lost == []
            assert client.statuses.keys() == {200}
        completed += sum(client.statuses.total() for client in clients)
    print(f"{rounds} times, {workers} workers: {completed} requests completed, none lost")


@pytest.mark.parametrize("workers", [1, 2])
def test_readiness_ends_first_and_requests_succeed_through_the_delay(start_server, workers):
    server = start_server("--workers", workers, "--drain-delay-s", DEADLINE_S)
    server.wait_until_ready(workers)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda: server.metric("tureen_ready") == 0, "not ready")
    for _ in range(8):  # of several workers, probably each
        assert server.ask("GET", "/readyz")[0] == 503
        assert server.ask("GET", "/healthz")[0] == 200
        status, headers, _ = server.ask("POST", "/classify", png())
        assert (status, headers["Connection"]) == (200, "close")
    began = time.monotonic()
    assert server.end() == 0  # the second signal ends the delay
    assert time.monotonic() - began < DEADLINE_S / 2
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/healthz")


def head(path="/healthz"):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def response_on(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status, response.headers.get("Connection")


def test_a_request_that_arrives_during_the_shutdown_gets_its_response(start_server):
    server = start_server()
    server.wait_until_ready()
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as kept, socket.create_connection(address) as silent:
        kept.sendall(head())
        assert response_on(kept) == (200, None)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.log("Shutting down"), "no more connections")
        kept.sendall(head())
        silent.sendall(head())
        assert response_on(kept) == (200, "close")
        assert response_on(silent) == (200, "close")
        assert server.process.wait(DEADLINE_S) == 0


def test_silent_connections_do_not_delay_the_shutdown(start_server):
    server = start_server("--drain-timeout-s", 3600)
    server.wait_until_ready()
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        assert server.end() == 0
        assert silent.recv(1) == b""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_without_capabilities_completes_the_uploads_in_progress(start_server, without_capabilities, workers):
    server = start_server("--workers", workers, before=without_capabilities)
    server.wait_until_ready(workers)
    (status,) = [line for line in server_status(server.process.pid) if line.startswith("CapEff:")]
    assert int(status.split()[1], 16) == 0
    body = png()
    uploads = [socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) for _ in range(8)]
    for upload in uploads:
        upload.sendall(f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        upload.sendall(body[:100])
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda: server.log("Shutting down"), "no more connections")
    for upload in uploads:
        upload.sendall(body[100:])
    assert [response_on(upload)[0] for upload in uploads] == [200] * len(uploads)
    assert server.process.wait(DEADLINE_S) == 0, server.log_file.read_text()
    assert [line for line in server.log() if line["level"] in ("warning", "error")] == []
    for upload in uploads:
        upload.close()


def server_status(pid):
    """What Linux says of that process."""
    with open(f"/proc/{pid}/status") as file:
        return file.read().splitlines()


class SocketWithoutOptions(socket.socket):
    """A socket on which no option can be set, as a sandbox may have it."""

    def setsockopt(self, *arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")


async def answer_200(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def test_without_socket_options_the_shutdown_loses_no_connection_either():
    # The loop of the server: asyncio's own drops a connection that it accepted just before its listener was closed.
    uvloop.run(asyncio.wait_for(drain_without_options(), DEADLINE_S))


async def drain_without_options():
    (listener,) = bind("127.0.0.1", 0)
    address = listener.getsockname()
    started = asyncio.Event()

    async def start():
        await server.accept_from({0})
        started.set()

    server = DrainingServer(
        uvicorn.Config(answer_200, http=DrainingProtocol, lifespan="off", log_config=None),
        [SocketWithoutOptions(fileno=listener.detach())],
        delay_s=0,
        on_start=start,
        on_drain=lambda: None,
        handles_signals=False,
    )
    serving = asyncio.create_task(server.serve())
    await started.wait()
    uploads = [await asyncio.open_connection(*address) for _ in range(8)]
    for _, writer in uploads:
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
    server.drain()
    late = []
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            late.append(await asyncio.open_connection(*address))
            late[-1][1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(0.005)
    assert late
    for _, writer in uploads:
        writer.write(b"cd")
    for reader, writer in [*uploads, *late]:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
    await serving


class Changed:
    """A class of another version of uvicorn."""

    def __init__(self):
        self.loop = None

    def shutdown(self):
        pass


def test_an_uvicorn_without_a_method_that_is_used_is_an_error_at_the_start(request):
    check_uvicorn()
    check_uvicorn({Changed: "loop shutdown"})
    with pytest.raises(UvicornVersionError) as error:
        check_uvicorn({Changed: "loop shutdown _start_asgi_task cycle"})
    assert "has no Changed._start_asgi_task, Changed.cycle" in str(error.value)
    assert UVICORN in str(error.value)
    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())["project"]
    assert UVICORN in project["optional-dependencies"]["serve"]
