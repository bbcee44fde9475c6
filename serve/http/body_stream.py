"""Receives the body of a request: capped in bytes, in time, and in what all bodies together hold; and tells when the
client has gone. A compressed body is capped before and after decompression. What the bytes mean is
`serve.api.images`'s.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
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

COMPRESSIONS = frozenset({"gzip", "deflate"})
NOT_ONE_STREAM = "the body is not one whole gzip or zlib stream, which its Content-Encoding says it is"
PIECE_BYTES = 2**20  # decompressed at a time, in milliseconds; then other requests have their turn

T = TypeVar("T")


class BodyMemory:
    """The bytes of all bodies being received, which are bounded whatever number of clients sends them slowly."""

    def __init__(self, max_bytes: int, on_held: Callable[[int], None] = lambda held: None) -> None:
        """on_held: told how many bytes are held, whenever that changed."""
        self.held = 0
        self._max_bytes = max_bytes
        self._on_held = on_held

    def hold(self, count: int) -> None:
        """So many more bytes, negative when they are let go; raises OverloadedError beyond the limit."""
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
    """The whole body; decompresses: whether it may be compressed with gzip or deflate.

    Raises UnsupportedImageTypeError where its Content-Encoding is another, ImageTooLargeError (or what is given for it)
    as soon as it is known to be beyond max_bytes, compressed or decompressed, MalformedRequestError where it cannot be
    decompressed, BodyTimeoutError, IncompleteBodyError, and OverloadedError where all bodies together are too large.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity" and not (decompresses and encoding in COMPRESSIONS):
        advice = "use gzip or deflate, or none" if decompresses else "send it as it is"
        raise UnsupportedImageTypeError(f"the body has a Content-Encoding that is not read here: {advice}")
    too_large = too_large or ImageTooLargeError("bytes", max_bytes)
    stream: AsyncIterator[bytes] = request.stream()
    if encoding != "identity":
        stream = _decompressed(stream, max_bytes, too_large)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    chunks: list[bytes] = []  # mostly one, which is the body without another copy
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
    """The stream without gzip or deflate, in pieces of at most PIECE_BYTES; it must end where the compression does.

    max_bytes: of the compressed stream. It is counted too, since it may decompress to nothing.
    """
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: either header, gzip's or zlib's
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


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; where the client of a received request goes meanwhile, cancels it.

    Raises ClientGoneError then, for the log and the metrics: nobody reads the answer.
    """
    waiter = asyncio.current_task()
    assert waiter is not None
    is_waiting, is_gone = True, False

    def leave(left: asyncio.Future[None]) -> None:
        nonlocal is_gone
        if is_waiting and not left.cancelled():
            is_gone = True
            waiter.cancel()

    leaving = asyncio.ensure_future(_disconnected(request))
    leaving.add_done_callback(leave)
    try:
        return await work  # in this task: one of its own would cost every request as much as reading its query
    except asyncio.CancelledError:
        if is_gone and not waiter.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        is_waiting = False
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
