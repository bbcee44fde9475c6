import asyncio
import gzip
import zlib

import pytest
from starlette.requests import Request

from serve.errors import (
    BodyTimeoutError,
    ClientGoneError,
    IncompleteBodyError,
    MalformedRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from serve.http.body_stream import BodyMemory, cancel_on_disconnect, receive_body
from tureen.errors import ImageTooLargeError, UnsupportedImageTypeError

DISCONNECT = {"type": "http.disconnect"}


def chunks(*bodies):
    """ASGI messages of one body."""
    last = len(bodies) - 1
    return [{"type": "http.request", "body": body, "more_body": i < last} for i, body in enumerate(bodies)]


def request(messages, **headers):
    """A request whose client sends these messages and then nothing."""
    remaining = iter(messages)

    async def receive():
        for message in remaining:
            return message
        return await asyncio.Event().wait()

    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": names}, receive)


def receive(messages, *, max_bytes=10, max_memory=100, timeout_ms=10_000, too_large=None, decompresses=True, **headers):
    memory = BodyMemory(max_memory)
    body = receive_body(
        request(messages, **headers),
        memory,
        max_bytes=max_bytes,
        timeout_ms=timeout_ms,
        too_large=too_large,
        decompresses=decompresses,
    )
    try:
        return asyncio.run(body)
    finally:
        assert memory.held == 0


@pytest.mark.parametrize(
    ("messages", "headers", "body"),
    [
        (chunks(b""), {}, b""),
        (chunks(b"0123456789"), {"content_length": "10"}, b"0123456789"),
        (chunks(b"012", b"", b"345"), {}, b"012345"),
        (chunks(b"as it is"), {"content_encoding": "identity"}, b"as it is"),
        (chunks(gzip.compress(b"gzip")), {"content_encoding": "gzip"}, b"gzip"),
        (chunks(*(bytes([byte]) for byte in zlib.compress(b"zlib"))), {"content_encoding": " Deflate"}, b"zlib"),
    ],
)
def test_a_body_is_received_whole_and_decompressed(messages, headers, body):
    assert receive(messages, max_bytes=40, **headers) == body


@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        (chunks(b"01234567890"), {}, ImageTooLargeError),
        (chunks(b"0123456789", b"0"), {"too_large": RequestTooLargeError(10)}, RequestTooLargeError),
        ([], {"content_length": "11"}, ImageTooLargeError),  # known before the body arrives
        (chunks(gzip.compress(bytes(1000))), {"content_encoding": "gzip", "max_bytes": 100}, ImageTooLargeError),
        (chunks(gzip.compress(b"") * 50), {"content_encoding": "gzip", "max_bytes": 100}, ImageTooLargeError),
        (chunks(b"0123456789"), {"max_memory": 9}, OverloadedError),
        (chunks(b"x"), {"content_encoding": "br"}, UnsupportedImageTypeError),
        (chunks(b"x"), {"content_encoding": "gzip", "decompresses": False}, UnsupportedImageTypeError),
        (chunks(b"no gzip"), {"content_encoding": "gzip"}, MalformedRequestError),
        (chunks(gzip.compress(b"x")[:-1]), {"content_encoding": "gzip", "max_bytes": 40}, MalformedRequestError),
        (chunks(gzip.compress(b"x") + b"y"), {"content_encoding": "gzip", "max_bytes": 40}, MalformedRequestError),
        (chunks(b"012", b"345")[:1], {"timeout_ms": 20}, BodyTimeoutError),
        ([*chunks(b"012", b"345")[:1], DISCONNECT], {}, IncompleteBodyError),
    ],
)
def test_a_body_beyond_a_limit_or_cut_short_raises_its_error_and_holds_no_memory(messages, options, error):
    with pytest.raises(error):
        receive(messages, **options)


def test_memory_is_held_while_a_body_is_received_and_reported_after_each_change():
    changes = []
    memory = BodyMemory(10, changes.append)
    memory.hold(6)
    with pytest.raises(OverloadedError):
        memory.hold(5)
    memory.hold(-6)
    assert changes == [6, 0]


def test_work_ends_with_its_result_while_the_client_stays():
    async def work():
        await asyncio.sleep(0)
        return "result"

    assert asyncio.run(cancel_on_disconnect(request([]), work())) == "result"


def test_work_is_cancelled_when_its_client_closes_the_connection():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ClientGoneError):
        asyncio.run(cancel_on_disconnect(request([DISCONNECT]), work()))
    assert ended == [True]


def test_a_cancellation_by_the_server_is_not_taken_for_a_client_that_has_gone():
    async def cancelled():
        running = asyncio.create_task(cancel_on_disconnect(request([]), asyncio.Event().wait()))
        await asyncio.sleep(0)
        running.cancel()
        await running

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
