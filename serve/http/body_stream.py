"""Receives the body of a request, and detects a client that closes the connection.

Limits the bytes of a body, the time until it is complete, and the memory of all bodies together. The limit on bytes
applies to a compressed body before and after decompression. `serve.api.images` parses the content.
`serve.connection.http_connection` enforces the minimum rate of a body and --body-timeout-s.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from serve.errors import (
    BodyTimeoutError,
    ClientGoneError,
    IncompleteBodyError,
    MalformedRequestError,
    OverloadedError,
)
from tureen.errors import ImageTooLargeError, TureenError, UnsupportedImageTypeError

DISCONNECTION = "tureen.disconnection"  # key of the ASGI scope
COMPRESSIONS = frozenset({"gzip", "deflate"})
NOT_ONE_STREAM = "the body is not one whole gzip or zlib stream, as its Content-Encoding declares"
PIECE_BYTES = 2**20  # decompressed at a time: this takes milliseconds, and other requests run between pieces

T = TypeVar("T")


class Disconnection:
    """The end of a connection by its client. `serve.connection` has one for each connection, and calls `set`."""

    def __init__(self) -> None:
        self.is_set = False
        self._callbacks: set[Callable[[], None]] = set()

    def set(self) -> None:
        """Calls the callbacks of all requests of the connection that are in progress."""
        self.is_set = True
        for callback in list(self._callbacks):
            callback()

    @contextmanager
    def calls(self, callback: Callable[[], None]) -> Iterator[None]:
        """Calls `callback` if the client closes the connection during the `with` block."""
        self._callbacks.add(callback)
        try:
            yield
        finally:
            self._callbacks.discard(callback)


class BodyMemory:
    """Counts the bytes of all bodies that are being received, and limits their sum.

    With this limit, many slow clients together cannot fill the memory.
    """

    def __init__(self, max_bytes: int, on_held: Callable[[int], None] = lambda held: None) -> None:
        """max_bytes: limit of the sum. on_held: receives the current sum in bytes after each change."""
        self.held = 0
        self._max_bytes = max_bytes
        self._on_held = on_held

    def hold(self, count: int) -> None:
        """Adds `count` bytes to the sum. A negative count releases bytes.

        Raises OverloadedError, and adds nothing, if the sum would exceed the limit.
        """
        if count > 0 and self.held + count > self._max_bytes:
            raise OverloadedError
        self.held += count
        self._on_held(self.held)


async def receive_body(
    request: Request,
    memory: BodyMemory,
    *,
    max_bytes: int,
    timeout_ms: int,
    too_large: TureenError | None = None,
    decompresses: bool = False,
) -> bytes:
    """Returns the complete body, decompressed.

    decompresses: whether a body may be compressed with gzip or deflate. too_large: the error for a body that is too
    large; None: an ImageTooLargeError.
    Raises UnsupportedImageTypeError for a Content-Encoding that is not allowed. Raises `too_large` as soon as the
    compressed or the decompressed body exceeds max_bytes. Raises OverloadedError if all bodies together exceed the
    limit of `memory`. Raises BodyTimeoutError if the body is not complete after timeout_ms, IncompleteBodyError if the
    connection ends before the body, and MalformedRequestError if the compressed stream is damaged.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity" and not (decompresses and encoding in COMPRESSIONS):
        advice = "use gzip or deflate, or none" if decompresses else "send it uncompressed"
        raise UnsupportedImageTypeError(f"the Content-Encoding of the body is not supported: {advice}")
    too_large = too_large or ImageTooLargeError("bytes", max_bytes)
    stream: AsyncIterator[bytes] = request.stream()
    if encoding != "identity":
        stream = _decompressed(stream, max_bytes, too_large)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    chunks: list[bytes] = []  # mostly a single one, which join returns without a copy
    held = 0
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async for chunk in stream:
                if held + len(chunk) > max_bytes:
                    raise too_large
                memory.hold(len(chunk))
                held += len(chunk)
                if chunk:
                    chunks.append(chunk)
    except ClientDisconnect:
        raise IncompleteBodyError from None
    except TimeoutError:
        raise BodyTimeoutError(timeout_ms) from None
    finally:
        memory.hold(-held)
    return b"".join(chunks)


async def _decompressed(stream: AsyncIterator[bytes], max_bytes: int, too_large: TureenError) -> AsyncIterator[bytes]:
    """Yields the decompressed bytes of a gzip or zlib stream, in pieces of at most PIECE_BYTES.

    max_bytes: limit of the compressed stream. The caller limits the decompressed stream. Both limits are needed,
    because a long stream may decompress to nothing. Raises `too_large` above max_bytes, and MalformedRequestError if
    the stream is damaged, incomplete or followed by other bytes.
    """
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: detects either header
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        is_full = True
        while is_full:
            try:
                piece = decompressor.decompress(chunk, PIECE_BYTES)
            except zlib.error:
                raise MalformedRequestError(NOT_ONE_STREAM) from None
            chunk = decompressor.unconsumed_tail
            is_full = len(piece) == PIECE_BYTES
            yield piece
            await asyncio.sleep(0)
        if decompressor.unused_data:
            raise MalformedRequestError(NOT_ONE_STREAM)
    if not decompressor.eof:
        raise MalformedRequestError(NOT_ONE_STREAM)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` and returns the result. Cancels `work` if the client closes the connection.

    Must be called after the body of the request was received. Raises ClientGoneError after the cancellation, for the
    log and the metrics; no client receives a response. Uses the `Disconnection` in the scope, because a task that
    waits for the message of ASGI costs each request as much as parsing its query. Without one, starts such a task.
    """
    waiter = asyncio.current_task()
    assert waiter is not None
    disconnection: Disconnection | None = request.scope.get(DISCONNECTION)
    watcher = None
    if disconnection is None:  # another server than that of `serve.connection`
        disconnection = Disconnection()
        watcher = asyncio.create_task(_wait_for_disconnect(request, disconnection))
    is_gone = disconnection.is_set

    def cancel_waiter() -> None:
        nonlocal is_gone
        is_gone = True
        waiter.cancel()

    if is_gone:
        work.close()
        raise ClientGoneError
    try:
        with disconnection.calls(cancel_waiter):
            return await work  # in this task: a new task would cost each request as much as parsing its query
    except asyncio.CancelledError:
        if is_gone and not waiter.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        if watcher is not None:
            watcher.cancel()


async def _wait_for_disconnect(request: Request, disconnection: Disconnection) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    disconnection.set()
