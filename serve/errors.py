"""The errors of `serve`, and the party that must act on each. `serve.http.problems` maps them to HTTP responses.

Below, each error names that party. "caller": the caller must change the request. "caller, later": the caller may repeat
the request later. "operator": the operator must change the server or its environment. "us": the server has a defect,
which its developers must correct. "none": no party must act.

TureenError
└── ServeError
    ├── MalformedRequestError        caller: the request is not valid HTTP
    ├── HeadTooLargeError            caller: the head of the request is too large
    ├── HeadTimeoutError             caller: the head of the request arrives too slowly
    ├── UntrustedHostError           caller: the Host header has a name that is not allowed
    ├── TooManyChunksError           caller: the body has too many chunks
    ├── InvalidParameterError        caller: a query parameter or form field is wrong, unknown or repeated
    ├── MalformedFormError           caller: the multipart body cannot be parsed
    ├── IncompleteBodyError          caller: the connection ended before the end of the body
    ├── RequestTooLargeError         caller: the body has too many bytes
    ├── TooManyPixelsError           caller: the images of a request have too many pixels
    ├── BodyTimeoutError             caller: the body arrives too slowly
    │   └── SlowBodyError            caller: the body arrives below the minimum rate
    ├── TooManyConnectionsError      caller, later: the process has reached its limit of connections
    ├── OverloadedError              caller, later: the expected wait is beyond the limit
    ├── NotReadyError                caller, later: the engine has not reproduced the golden rows yet
    ├── ShuttingDownError            caller, later: the server is shutting down
    ├── DeadlineError                caller, later: the deadline passed before the result was ready
    ├── ClientGoneError              none: the client closed the connection
    ├── InferenceError               us: the engine failed
    ├── DecodingError                us: the process that decoded the image ended
    ├── UvicornVersionError          operator: the installed uvicorn is not supported
    ├── PortError                    operator: the server cannot listen on a host and port
    ├── SettingsFileError            operator: the file of settings cannot be read, or has a wrong key or value
    ├── OipError                     errors of the Open Inference Protocol
    │   ├── InvalidRequestError          caller: the tensors, parameters or framing are wrong
    │   ├── InferRequestTooLargeError    caller: the request has too many bytes
    │   ├── UnknownModelError            caller: this server has another model or version
    │   ├── NotOfferedError              caller: this server does not support this part of the protocol
    │   └── GrpcPortTakenError           operator: gRPC cannot listen on its port
    ├── ControlError                 errors of the operator's settings
    │   ├── InvalidChangeError           caller: the change or the settings after it are not valid
    │   ├── StaleRevisionError           caller: the change is for an earlier revision
    │   ├── UnknownRevisionError         caller: the revision does not exist
    │   ├── ChoiceNotAllowedError        caller: the operator does not allow clients to choose β
    │   ├── BetaOutOfBoundsError         caller: β is outside the operator's bounds
    │   ├── UnknownPolicyError           caller: the policy does not exist
    │   ├── UnknownApiKeyError           caller: the API key is unknown
    │   ├── TokenParkedError             operator: the model cannot use a token that the operator added
    │   ├── UnknownOperatorTokenError    caller: no operator has added the token
    │   ├── ControlStoreError            operator: the store of the settings cannot be reached
    │   └── BrokenHistoryError           operator: the history has a damaged or changed row
    ├── AdminError                   errors of the operators' listener
    │   ├── UnauthorizedError            caller: the bearer token is missing or wrong
    │   ├── ForbiddenError               caller: the credential may only read
    │   ├── IfMatchRequiredError         caller: the request does not name the revision to change
    │   └── AdminListenerError           operator: other machines can reach a listener without a credential
    └── JobError                     errors of batch jobs
        ├── InputError                   caller: the input is not a folder, archive, glob or manifest, or is unreadable
        ├── OutputError                  caller: the output directory has other files or another job
        │   └── OutputTakenError         caller: another process writes to the output
        ├── OutsideRootsError            caller: the path is outside the roots
        ├── UnknownJobError              caller: the job does not exist
        ├── JobStateError                caller: the job is in another state
        ├── NoResultError                caller: the result does not exist
        ├── TooManyJobsError             caller, later: too many jobs have not ended
        ├── JobsUnavailableError         operator: the server accepts no jobs
        ├── JobStoppedError              caller: too large a share of the images failed
        └── JobInterruptedError          none: the job was paused or cancelled, or the server stops

ImageError
└── UnreadableError                  caller: an input file is missing, not a regular file, or unreadable
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tureen.errors import ImageError, TureenError

UVICORN = "uvicorn>=0.53,<0.55"  # the same range as in pyproject.toml


class ServeError(TureenError):
    """Base of the errors of this package."""


class MalformedRequestError(ServeError):
    pass


class HeadTooLargeError(ServeError):
    pass


class HeadTimeoutError(ServeError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request head did not arrive within {timeout_s:g} s")


class UntrustedHostError(ServeError):
    def __init__(self) -> None:
        super().__init__("this Host is not allowed: the operator can add it to --allowed-hosts")


class TooManyChunksError(ServeError):
    def __init__(self, max_chunks: int) -> None:
        super().__init__(f"the body has more than {max_chunks:,} chunks, the limit: send larger ones")


class UvicornVersionError(ServeError):
    def __init__(self, version: str, missing: Iterable[str]) -> None:
        names = ", ".join(sorted(missing))
        super().__init__(f"uvicorn {version} is not supported, because it has no {names}: pip install '{UVICORN}'")


class TooManyConnectionsError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server has reached its limit of connections: try again shortly")


class InvalidParameterError(ServeError):
    pass


class MalformedFormError(ServeError):
    pass


class IncompleteBodyError(ServeError):
    def __init__(self) -> None:
        super().__init__("the connection ended before the end of the body")


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
        super().__init__("the client closed the connection")


class OverloadedError(ServeError):
    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server has more requests than it can process in time: try again in {retry_after_s} s")


class NotReadyError(ServeError):
    def __init__(self) -> None:
        super().__init__("the model is still being loaded: try again shortly")


class ShuttingDownError(ServeError):
    def __init__(self) -> None:
        super().__init__("the server is shutting down: try again shortly")


class DeadlineError(ServeError):
    def __init__(self) -> None:
        super().__init__("the deadline passed before the image was in a batch: try again, or raise timeout_ms")


class InferenceError(ServeError):
    def __init__(self) -> None:
        super().__init__("the engine failed on this image; the server log has the cause")


class DecodingError(ServeError):
    def __init__(self) -> None:
        super().__init__("the process that decoded the image ended; the server log has the cause")


class PortError(ServeError):
    """The server cannot listen on a host and port.

    reason: text of the system. is_admin: whether the port is that of the operators' listener.
    """

    def __init__(self, host: str, port: int, reason: str, *, is_admin: bool) -> None:
        who, option = (" for operators", "--admin-port") if is_admin else ("", "--port")
        super().__init__(f"cannot listen{who} on {host} port {port}: {reason}; choose another {option}")
        self.host, self.port, self.reason, self.is_admin = host, port, reason, is_admin


class SettingsFileError(ServeError, ValueError):
    """The file of settings cannot be used; the message has its path, the line where it is known, and the reason."""


class OipError(ServeError):
    """Base of the errors of the Open Inference Protocol."""


class InvalidRequestError(OipError):
    pass


class InferRequestTooLargeError(OipError):
    def __init__(self, what: str, limit: int, advice: str) -> None:
        super().__init__(f"the {what} has more than {limit:,} bytes, the limit: {advice}")


class UnknownModelError(OipError):
    pass


class NotOfferedError(OipError):
    pass


class GrpcPortTakenError(OipError):
    def __init__(self, address: str) -> None:
        super().__init__(
            f"gRPC cannot listen on {address}: choose another --grpc-port, or stop the program that listens there"
        )


class ControlError(ServeError):
    """Base of the errors of the operator's settings."""


class InvalidChangeError(ControlError):
    pass


class StaleRevisionError(ControlError):
    def __init__(self, head: int) -> None:
        self.head = head
        super().__init__(f"the settings are at revision {head}: review what changed, then repeat your change")


class UnknownRevisionError(ControlError):
    def __init__(self, revision: int) -> None:
        super().__init__(f"revision {revision} does not exist: see the history")


class ControlStoreError(ControlError):
    pass


class BrokenHistoryError(ControlError):
    def __init__(self, revision: int, what: str) -> None:
        self.revision = revision
        super().__init__(f"the history is broken at revision {revision}: {what}")


class ChoiceNotAllowedError(ControlError):
    def __init__(self) -> None:
        super().__init__("the operator does not allow clients to choose β: remove beta, betas and policy")


class BetaOutOfBoundsError(ControlError):
    def __init__(self, beta: float, least: float, most: float) -> None:
        super().__init__(f"β is {beta:g}, but the operator allows {least:g} to {most:g}")


class UnknownPolicyError(ControlError):
    def __init__(self) -> None:
        super().__init__("the policy does not exist: remove the parameter policy to get the default β")


class UnknownApiKeyError(ControlError):
    def __init__(self) -> None:
        super().__init__("the X-API-Key is unknown: remove the header to get the default β")


class TokenParkedError(ControlError):
    def __init__(self) -> None:
        super().__init__("the model cannot use a token that the operator added: ask the operator of the service")


class UnknownOperatorTokenError(ControlError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no operator has added a token {name[:63]!r}: GET /admin/tokens lists the tokens")


class AdminError(ServeError):
    """Base of the errors of the operators' listener."""


class UnauthorizedError(AdminError):
    def __init__(self) -> None:
        super().__init__("send the header Authorization: Bearer TOKEN with the token of an operator")


class ForbiddenError(AdminError):
    def __init__(self) -> None:
        super().__init__("this credential may only read: a change needs one with the role operate")


class IfMatchRequiredError(AdminError):
    def __init__(self) -> None:
        super().__init__(
            'send If-Match with the ETag of GET /admin/beta, such as "12", which is the revision to change'
        )


class AdminListenerError(AdminError):
    pass


class JobError(ServeError):
    """Base of the errors of batch jobs."""


class InputError(JobError, ValueError):
    """The input is not a folder, archive, glob or manifest, or cannot be read."""


class OutputError(JobError, ValueError):
    """The output directory has other files or another job."""


class OutputTakenError(OutputError):
    """Another process writes to the output."""


class OutsideRootsError(JobError, ValueError):
    def __init__(self, path: str, roots: Sequence[Path]) -> None:
        listed = ", ".join(map(str, roots)) or "no directory"
        super().__init__(f"{path!r} is not a plain absolute path below a directory for jobs ({listed})")


class JobStoppedError(JobError):
    """Too large a share of the images failed."""


class UnreadableError(ImageError):
    """An input file is missing, is not a regular file, or is unreadable."""


class UnknownJobError(JobError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"the job {job_id[:32]!r} does not exist: GET /jobs lists the jobs")


class JobStateError(JobError):
    def __init__(self, state: str, requested: str) -> None:
        super().__init__(f"a job that is {state.replace('_', ' ')} cannot be {requested}")


class TooManyJobsError(JobError):
    def __init__(self, most: int) -> None:
        super().__init__(f"{most:,} jobs have not ended, which is the limit: wait, or cancel some")


class JobsUnavailableError(JobError):
    def __init__(self) -> None:
        super().__init__("this server takes no jobs: start it with --job-input-roots and --job-output-roots")


class NoResultError(JobError):
    def __init__(self) -> None:
        super().__init__("the result does not exist: GET /jobs/ID/results lists the results of a job")


class JobInterruptedError(JobError):
    """The job stops before its end: it was paused or cancelled, or the server shuts down."""
