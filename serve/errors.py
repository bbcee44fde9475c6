"""What can go wrong between a request and its answer, and who must act. `serve.problems` maps it to HTTP.

TureenError
└── ServeError
    ├── InvalidParameterError        caller: a query parameter or form field is wrong, unknown or given twice
    ├── MalformedFormError           caller: the multipart body cannot be read
    ├── IncompleteBodyError          caller: the connection ended within the body
    ├── BodyTimeoutError             caller: the body came too slowly
    ├── OverloadedError              caller, later: every permit is taken
    ├── NotReadyError                caller, later: no engine has reproduced the golden rows yet
    ├── ShuttingDownError            caller, later: the server stops and waits no longer
    ├── DeadlineError                caller, later: the answer would have come too late
    └── InferenceError               us: the engine failed
"""

from __future__ import annotations

from tureen.errors import TureenError


class ServeError(TureenError):
    """Base of the errors of this package."""


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


class OverloadedError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server has as many requests as it takes at a time: try again shortly")


class NotReadyError(ServeError):
    def __init__(self) -> None:
        super().__init__("the model is still being loaded: try again shortly")


class ShuttingDownError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server is shutting down: try again shortly")


class DeadlineError(ServeError):
    def __init__(self, timeout_ms: int) -> None:
        super().__init__(f"no answer within {timeout_ms} ms: try again when the server is less busy")


class InferenceError(ServeError):
    def __init__(self) -> None:
        super().__init__("the engine failed on this batch; the server's log says more under this request's id")
