"""The receipt of a body, without a server: its limits, its compression, and a client that disconnects."""

import asyncio
import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from serve.errors import (
    BodyTimeoutError,
    ClientGoneError,
    IncompleteBodyError,
    MalformedRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from serve.http.body_stream import DISCONNECTION, BodyMemory, Disconnection, cancel_on_disconnect, receive_body
from tureen.errors import ImageTooLargeError, TureenError, UnsupportedImageTypeError

DISCONNECT = {"type": "http.disconnect"}
BODY = b"one image, or several of them" * 20
COMPRESSED = gzip.compress(BODY, mtime=0)


class Messages:
    """The messages of a connection, one for each call. After the last one, the client sends nothing."""

    def __init__(self, *messages):
        self._messages = list(messages)

    async def receive(self):
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


def chunks(*data):
    """The messages of a body in these chunks."""
    return [
        {"type": "http.request", "body": chunk, "more_body": index < len(data) - 1} for index, chunk in enumerate(data)
    ]


def request(*messages, **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw}, Messages(*messages).receive)


def receive(*messages, memory=None, max_bytes=1000, timeout_ms=5000, too_large=None, decompresses=False, **headers):
    async def run():
        return await receive_body(
            request(*messages, **headers),
            memory or BodyMemory(10_000),
            max_bytes=max_bytes,
            timeout_ms=timeout_ms,
            too_large=too_large,
            decompresses=decompresses,
        )

    return asyncio.run(run())


@pytest.mark.parametrize(
    "data", [[b""], [b"a"], [b"a", b"b", b"c"], [b"", b"a", b""], [bytes(1000)], [bytes(999), b"x"]]
)
def test_the_body_is_all_its_chunks(data):
    assert receive(*chunks(*data)) == b"".join(data)


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        (chunks(bytes(1001)), {}),
        (chunks(bytes(1000), b"x"), {}),
        (chunks(bytes(1000), b"x", b""), {}),
        ([], {"content_length": "1001"}),  # before any byte of the body
        ([], {"content_length": "9" * 30}),
    ],
)
def test_a_body_beyond_the_limit_is_refused(messages, headers):
    with pytest.raises(ImageTooLargeError, match="1,000 bytes"):
        receive(*messages, **headers)
    with pytest.raises(RequestTooLargeError):
        receive(*messages, too_large=RequestTooLargeError(1000), **headers)


def test_a_body_that_ends_early_is_incomplete():
    with pytest.raises(IncompleteBodyError):
        receive({"type": "http.request", "body": b"a", "more_body": True}, DISCONNECT)


def test_a_body_that_does_not_arrive_in_time_is_a_timeout():
    with pytest.raises(BodyTimeoutError, match="10 ms"):
        receive({"type": "http.request", "body": b"a", "more_body": True}, timeout_ms=10)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", " gzip "])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 10_000])
def test_a_compressed_body_is_decompressed_where_the_route_allows_it(encoding, chunk_bytes):
    compressed = zlib.compress(BODY) if encoding == "deflate" else gzip.compress(BODY)
    parts = [compressed[i : i + chunk_bytes] for i in range(0, len(compressed), chunk_bytes)]
    assert receive(*chunks(*parts), decompresses=True, content_encoding=encoding) == BODY
    with pytest.raises(UnsupportedImageTypeError, match="send it uncompressed"):
        receive(*chunks(*parts), content_encoding=encoding)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", ""])
def test_another_encoding_is_refused(encoding):
    with pytest.raises(UnsupportedImageTypeError, match="use gzip or deflate"):
        receive(*chunks(b"x"), decompresses=True, content_encoding=encoding)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        COMPRESSED[:-1],
        COMPRESSED + b"x",
        COMPRESSED * 2,
        b"\0" + COMPRESSED,
    ],
    ids=["empty", "not compressed", "without its last byte", "and a byte", "twice", "behind a byte"],
)
def test_a_body_that_is_not_one_whole_stream_is_malformed(body):
    with pytest.raises(MalformedRequestError, match="not one whole gzip or zlib stream"):
        receive(*chunks(body), decompresses=True, content_encoding="gzip")


def test_a_body_that_decompresses_beyond_the_limit_is_refused_and_holds_no_memory():
    held = []
    memory = BodyMemory(10_000, held.append)
    with pytest.raises(ImageTooLargeError):
        receive(*chunks(gzip.compress(bytes(10**7))), memory=memory, decompresses=True, content_encoding="gzip")
    assert memory.held == 0
    assert max(held, default=0) <= 1000


def test_a_compressed_body_counts_even_if_it_decompresses_to_nothing():
    empty_block = b"\0\0\0\xff\xff"
    start = gzip.compress(b"")[:10]
    parts = [start, *[empty_block * 10] * 20]
    with pytest.raises(ImageTooLargeError):
        receive(*chunks(*parts), decompresses=True, content_encoding="gzip")


@given(data=st.lists(st.binary(max_size=60), min_size=1, max_size=8), cut=st.none() | st.integers(0, 7))
def test_no_memory_is_held_after_a_body_however_it_ends(data, cut):
    held = []
    memory = BodyMemory(150, held.append)
    messages = chunks(*data)
    if cut is not None and cut < len(messages):
        messages[cut] = DISCONNECT
    with contextlib.suppress(TureenError):
        assert receive(*messages, memory=memory, max_bytes=100) == b"".join(data)
    assert memory.held == 0
    assert all(0 <= count <= 100 for count in held)


def test_a_body_may_declare_that_it_is_not_compressed():
    assert receive(*chunks(b"as it is"), content_encoding="identity") == b"as it is"


def test_memory_is_reported_after_each_change_and_not_after_a_refusal():
    changes = []
    memory = BodyMemory(10, changes.append)
    memory.hold(6)
    with pytest.raises(OverloadedError):
        memory.hold(5)
    memory.hold(-6)
    assert changes == [6, 0]


def test_all_bodies_together_have_a_limit():
    memory = BodyMemory(1000)
    memory.hold(600)
    with pytest.raises(OverloadedError):
        receive(*chunks(bytes(300), bytes(200)), memory=memory)
    assert memory.held == 600
    memory.hold(-600)
    assert receive(*chunks(bytes(300), bytes(200)), memory=memory) == bytes(500)


async def value(result, started=None):
    if started is not None:
        started.set()
        await asyncio.Event().wait()
    await asyncio.sleep(0)
    if isinstance(result, Exception):
        raise result
    return result


def test_the_result_of_the_work_is_returned_while_the_client_stays():
    assert asyncio.run(cancel_on_disconnect(request(), value(7))) == 7
    with pytest.raises(KeyError):
        asyncio.run(cancel_on_disconnect(request(), value(KeyError("ours"))))


def test_the_work_is_cancelled_when_the_client_disconnects():
    is_cancelled = False

    async def work():
        nonlocal is_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    with pytest.raises(ClientGoneError):
        asyncio.run(cancel_on_disconnect(request({"type": "http.request", "body": b""}, DISCONNECT), work()))
    assert is_cancelled


def test_a_cancelled_request_is_not_mistaken_for_a_client_that_disconnected():
    async def run():
        started = asyncio.Event()
        task = asyncio.create_task(cancel_on_disconnect(request(), value(7, started)))
        await started.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_the_work_is_cancelled_when_the_connection_reports_its_end():
    async def run():
        disconnection, started = Disconnection(), asyncio.Event()
        one = Request({"type": "http", "headers": [], DISCONNECTION: disconnection})
        task = asyncio.create_task(cancel_on_disconnect(one, work(started)))
        await started.wait()
        disconnection.set()
        with pytest.raises(ClientGoneError):
            await task
        with pytest.raises(ClientGoneError):  # a request whose client had gone before
            await cancel_on_disconnect(one, work(asyncio.Event()))

    async def work(started):
        started.set()
        await asyncio.Event().wait()

    asyncio.run(run())
