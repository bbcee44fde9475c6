"""Receives the body of a request: capped in bytes, in time, and in what all bodies together hold; and tells when the
client has gone. What the bytes mean is `serve.body`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from serve.errors import BodyTimeoutError, ClientGoneError, IncompleteBodyError, OverloadedError
from tureen.errors import ImageTooLargeError, TureenError, UnsupportedImageTypeError

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
    request: Request, memory: BodyMemory, *, max_bytes: int, timeout_ms: int, too_large: TureenError | None = None
) -> bytes:
    """The whole body.

    Raises UnsupportedImageTypeError where it is compressed, ImageTooLargeError (or what is given for it) as soon as it
    is known to be beyond max_bytes, BodyTimeoutError, IncompleteBodyError, and OverloadedError where all bodies
    together are too large.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImageTypeError("the body has a Content-Encoding: send it as it is")
    too_large = too_large or ImageTooLargeError("bytes", max_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    chunks: list[bytes] = []  # mostly one, which is the body without another copy
    held = 0
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async for chunk in request.stream():
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
