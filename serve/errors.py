"""What can go wrong between a request and its answer, and who must act. `serve.http.problems` maps it to HTTP.

TureenError
└── ServeError
    ├── MalformedRequestError        caller: what came is no sound HTTP request
    ├── HeadTooLargeError            caller: its head is too large
    ├── HeadTimeoutError             caller: its head came too slowly
    ├── UntrustedHostError           caller: its Host is none that this server answers to
    ├── TooManyChunksError           caller: its body comes in too many pieces
    ├── UvicornVersionError          operator: the installed uvicorn is not one that this server works with
    ├── TooManyConnectionsError      caller, later: the process has as many connections as it takes
    ├── InvalidParameterError        caller: a query parameter or form field is wrong, unknown or given twice
    ├── MalformedFormError           caller: the multipart body cannot be read
    ├── IncompleteBodyError          caller: the connection ended within the body
    ├── RequestTooLargeError         caller: a form or JSON beyond the limit
    ├── TooManyPixelsError           caller: the images of a request have too many pixels together
    ├── BodyTimeoutError             caller: the body came too slowly
    │   └── SlowBodyError            caller: below the least rate
    ├── ClientGoneError              nobody: the client has gone, and reads no answer
    ├── OverloadedError              caller, later: there is more to do than in time can be
    ├── NotReadyError                caller, later: no engine has reproduced the golden rows yet
    ├── ShuttingDownError            caller, later: the server stops and waits no longer
    ├── DeadlineError                caller, later: the answer would have come too late
    ├── InferenceError               us: the engine failed
    └── DecodingError                us: the process that decoded an image ended
"""

from __future__ import annotations

from collections.abc import Iterable

from tureen.errors import TureenError

UVICORN = "uvicorn>=0.53,<0.55"  # as pyproject.toml has it


class ServeError(TureenError):
    """Base of the errors of this package."""


class MalformedRequestError(ServeError):
    pass


class HeadTooLargeError(ServeError):
    pass


class HeadTimeoutError(ServeError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request's head did not arrive within {timeout_s:g} s")


class UntrustedHostError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server does not answer to this Host: its operator can name it in --allowed-hosts")


class TooManyChunksError(ServeError):
    def __init__(self, max_chunks: int) -> None:
        super().__init__(f"the body has more than {max_chunks:,} chunks, the limit: send larger ones")


class UvicornVersionError(ServeError):
    def __init__(self, version: str, missing: Iterable[str]) -> None:
        names = ", ".join(sorted(missing))
        super().__init__(f"uvicorn {version} has no {names}: pip install '{UVICORN}'")


class TooManyConnectionsError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server has as many connections as it takes: try again shortly")


class InvalidParameterError(ServeError):
    pass


class MalformedFormError(ServeError):
    pass


class IncompleteBodyError(ServeError):
    def __init__(self) -> None:
        super().__init__("the connection ended before the body did")


class BodyTimeoutError(ServeError):
    def __init__(self, timeout_ms: int) -> None:
        super().__init__(f"the body did not arrive within {timeout_ms} ms")


class SlowBodyError(BodyTimeoutError):
    def __init__(self, min_rate: int, timeout_s: float) -> None:
        ServeError.__init__(self, f"the body came at less than {min_rate:,} bytes/s, or took more than {timeout_s:g} s")


class RequestTooLargeError(ServeError):
    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body has more than {max_bytes:,} bytes, the limit: send fewer images at a time")


class TooManyPixelsError(ServeError):
    def __init__(self, max_pixels: int) -> None:
        super().__init__(
            f"the images of the request have more than {max_pixels:,} pixels together, the limit: send fewer at a time"
        )


class ClientGoneError(ServeError):
    def __init__(self) -> None:
        super().__init__("the client has gone")


class OverloadedError(ServeError):
    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server has more requests than it can answer in time: try again in {retry_after_s} s")


class NotReadyError(ServeError):
    def __init__(self) -> None:
        super().__init__("the model is still being loaded: try again shortly")


class ShuttingDownError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server is shutting down: try again shortly")


class DeadlineError(ServeError):
    def __init__(self) -> None:
        super().__init__("the time limit passed before it was the image's turn: try again, or raise timeout_ms")


class InferenceError(ServeError):
    def __init__(self) -> None:
        super().__init__("the engine failed on this batch; the server's log says more under this request's id")


class DecodingError(ServeError):
    def __init__(self) -> None:
        super().__init__("the process that decoded the image ended; the server's log says more")
