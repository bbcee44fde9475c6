"""The errors of the clients. The first word of a line says who must act: the caller or the operator.

    TureenError
    └── ClientError                 every error of a request; `code`, `status`, `detail` and `request_id`
        ├── RefusedError            caller: the image, a parameter or the API key is refused; status 4xx
        ├── DeadlineError           caller: the time limit passed, here or in the server
        ├── OverloadedError         operator: the server is overloaded, after all retries; status 429
        ├── NotReadyError           operator: the server loads, ends or has no free connection; status 503
        ├── UnreachableError        operator: no connection was made, so nothing was sent
        ├── ConnectionLostError     operator: the connection ended before the response was complete
        └── ServerError             operator: the server failed, or sent no response of Tureen

`docs/http-api.md` lists the codes of the server. The other codes are those of `LOCAL_CODES`.
"""

from __future__ import annotations

from typing import Final

from tureen.errors import TureenError

LOCAL_CODES: Final = frozenset({"deadline_exceeded", "unreachable", "connection_lost", "unexpected_response"})


class ClientError(TureenError):
    """A request failed.

    code: identifies the error; of the server, or one of LOCAL_CODES. status: of the response; None without a response.
    detail: what happened, and what to do. request_id: identifies the request in the log of the server; None without a
    response. retry_after_s: the value of the header Retry-After; None without it.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.status = status
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class RefusedError(ClientError):
    """The server refuses this request, and would refuse it again."""


class DeadlineError(ClientError):
    """The time limit of the call passed before the complete response."""


class OverloadedError(ClientError):
    """The server is overloaded. `retry_after_s` says when to try again."""


class NotReadyError(ClientError):
    """The server is loading its model, is shutting down, or has too many connections."""


class UnreachableError(ClientError):
    """No connection to the server was made, so no byte of the request was sent."""


class ConnectionLostError(ClientError):
    """The connection ended before the response was complete. The server may have classified the image."""


class ServerError(ClientError):
    """The server failed, or the response is not one of Tureen."""


CLASS_OF_CODE: Final[dict[str, type[ClientError]]] = {
    "overloaded": OverloadedError,
    "not_ready": NotReadyError,
    "shutting_down": NotReadyError,
    "too_many_connections": NotReadyError,
    "deadline_exceeded": DeadlineError,
    "head_timeout": DeadlineError,
    "body_timeout": DeadlineError,
}
CLASS_OF_STATUS: Final[dict[int, type[ClientError]]] = {
    408: DeadlineError,
    429: OverloadedError,
    503: NotReadyError,
    504: DeadlineError,
}


def error_class(code: str, status: int) -> type[ClientError]:
    """Returns the class of the error for a response: by its code, else by its status.

    A proxy in front of the server sends a status without a code of Tureen.
    """
    if code in CLASS_OF_CODE:
        return CLASS_OF_CODE[code]
    return CLASS_OF_STATUS.get(status, RefusedError if 400 <= status < 500 else ServerError)
