"""An error as bytes on the wire, made once for all requests that get it: refusing must cost less than serving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from starlette.responses import Response
from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serve.http.problems import Kind, headers_of, is_oip, kind_of, oip_response, problem_response
from serve.http.request_log import REQUEST_ID
from tureen.errors import TureenError

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class ErrorResponse:
    """One error's answer: to be written as it is, or, where others must be written before it, sent by ASGI."""

    kind: Kind
    response: Response

    def to_bytes(self, request_id: str, more_headers: Headers, *, keep_alive: bool, is_head: bool) -> bytes:
        """The whole answer; is_head: to the method HEAD, so without its body."""
        headers = [*more_headers, *self._headers(request_id)]
        if not keep_alive:
            headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in headers]
        body = b"" if is_head else bytes(self.response.body)
        return b"".join([STATUS_LINE[self.kind.status], *lines, b"\r\n", body])

    async def send(self, send: Send, request_id: str) -> None:
        """The same answer by ASGI."""
        await send({"type": "http.response.start", "status": self.kind.status, "headers": self._headers(request_id)})
        await send({"type": "http.response.body", "body": self.response.body})

    def _headers(self, request_id: str) -> Headers:
        return [*self.response.raw_headers, (REQUEST_ID.encode(), request_id.encode())]


def error_response_of(error: TureenError, path: str = "") -> ErrorResponse:
    """The answer for an error: a problem, or what clients of the Open Inference Protocol expect on its paths."""
    return _refusal(kind_of(error), str(error), tuple(headers_of(error).items()), is_oip({"path": path}))


@lru_cache(maxsize=256)
def _refusal(kind: Kind, detail: str, headers: tuple[tuple[str, str], ...], is_protocols: bool) -> ErrorResponse:
    respond = oip_response if is_protocols else problem_response
    return ErrorResponse(kind, respond(kind, detail, dict(headers)))
