"""Encodes error responses as bytes, and caches them: refusing a request must cost less than classifying an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from starlette.responses import Response
from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serve.http.problems import ProblemType, headers_of, is_oip, oip_response, problem_response, problem_type_of
from serve.http.request_log import REQUEST_ID
from tureen.errors import TureenError

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class ErrorResponse:
    """An error response that can be sent in two ways: as bytes by `to_bytes`, or through ASGI by `send`.

    While a response to an earlier pipelined request is incomplete, the connection uses `send`, because ASGI keeps the
    order of the responses.
    """

    kind: ProblemType  # status, code and title
    response: Response  # the same response, with its body

    @property
    def retry_after_s(self) -> float:
        """The seconds of the header Retry-After; 0 without it."""
        return float(self.response.headers.get("retry-after", 0))

    def to_bytes(self, request_id: str, more_headers: Headers, *, keep_alive: bool, is_head: bool) -> bytes:
        """Returns the whole response as bytes. more_headers: additional headers.

        keep_alive: whether the connection stays open after the response. is_head: whether the method of the request is
        HEAD; then the response has no body.
        """
        headers = [*more_headers, *self._headers(request_id)]
        if not keep_alive:
            headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in headers]
        body = b"" if is_head else bytes(self.response.body)
        return b"".join([STATUS_LINE[self.kind.status], *lines, b"\r\n", body])

    async def send(self, send: Send, request_id: str) -> None:
        """Sends the response through the ASGI function `send`."""
        await send({"type": "http.response.start", "status": self.kind.status, "headers": self._headers(request_id)})
        await send({"type": "http.response.body", "body": self.response.body})

    def _headers(self, request_id: str) -> Headers:
        return [*self.response.raw_headers, (REQUEST_ID.encode(), request_id.encode())]


def error_response_of(error: TureenError, path: str = "") -> ErrorResponse:
    """Returns the response for an error. path: of the request.

    On a path below /v2 the response has the form of the Open Inference Protocol.
    """
    return _cached_response(
        problem_type_of(error), str(error), tuple(headers_of(error).items()), is_oip({"path": path})
    )


@lru_cache(maxsize=256)
def _cached_response(
    kind: ProblemType, detail: str, headers: tuple[tuple[str, str], ...], is_oip_path: bool
) -> ErrorResponse:
    respond = oip_response if is_oip_path else problem_response
    return ErrorResponse(kind, respond(kind, detail, dict(headers)))
