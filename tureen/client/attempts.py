"""Decides whether a failed request is sent again, and after which wait. Sends nothing, and does not sleep.

A request is sent again if the server refused it without work (429, 503) or if no connection was made. Its retries end
with the deadline of the call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tureen.client.client_errors import (
    ClientError,
    DeadlineError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    UnreachableError,
)
from tureen.errors import ArgumentError

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_MAX_RETRIES: Final = 4
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
SERVER_TIMEOUT_MS: Final = (
    10_000  # the default of `tureen serve --timeout-ms`, the largest `timeout_ms` that it accepts
)

RETRIED: Final = (OverloadedError, NotReadyError, UnreachableError)


class ServerTimeout:
    """Knows the largest `timeout_ms` that a server may accept.

    A server refuses a `timeout_ms` above its `--timeout-ms`, which its clients do not know. This class assumes the
    default of the server until a smaller value is refused.
    """

    def __init__(self) -> None:
        self.max_ms = SERVER_TIMEOUT_MS

    def parameter_ms(self, remaining_s: float) -> int | None:
        """Returns the value of `timeout_ms` for the remaining time; None if the limit of the server is shorter."""
        milliseconds = max(1, int(remaining_s * 1000))
        return milliseconds if milliseconds <= self.max_ms else None

    def refused(self, milliseconds: int) -> None:
        self.max_ms = min(self.max_ms, milliseconds - 1)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how late a request is sent again.

    max_retries: 0 sends each request once. uniform: returns a random number between two numbers.
    """

    max_retries: int = DEFAULT_MAX_RETRIES
    uniform: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ArgumentError(f"max_retries is {self.max_retries}: give 0 or more")

    def wait_s(self, retry: int, retry_after_s: float | None) -> float:
        """Returns the seconds before a retry: those of Retry-After, and a random part (exponential, full jitter).

        retry: its number, from 0.
        """
        backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(retry, 30))
        return (retry_after_s or 0.0) + self.uniform(0.0, backoff_s)


class Attempts:
    """The attempts of one call: its deadline, the retries so far, and whether `timeout_ms` is sent.

    clock: returns seconds that never decrease.
    """

    def __init__(
        self,
        timeout_s: float,
        policy: RetryPolicy,
        server_timeout: ServerTimeout,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ArgumentError if timeout_s is not above 0."""
        if not timeout_s > 0:
            raise ArgumentError(f"timeout_s is {timeout_s}: give a number of seconds above 0")
        self._clock = clock
        self._deadline_s = clock() + timeout_s
        self._policy = policy
        self._server_timeout = server_timeout
        self._retries = 0
        self._sent_ms: int | None = None
        self._refusal: tuple[int, RefusedError] | None = None  # the refused `timeout_ms`, and the error

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline_s - self._clock()

    def parameters(self) -> dict[str, str]:
        """Returns the parameter `timeout_ms` of the next attempt, or none. Raises DeadlineError after the deadline."""
        self.check_deadline()
        self._sent_ms = None if self._refusal else self._server_timeout.parameter_ms(self.remaining_s)
        return {} if self._sent_ms is None else {"timeout_ms": str(self._sent_ms)}

    def check_deadline(self) -> None:
        """Raises DeadlineError after the deadline."""
        if self.remaining_s <= 0:
            raise deadline_error()

    def succeeded(self) -> None:
        """Notes that the server has accepted the request."""
        if self._refusal:
            self._server_timeout.refused(self._refusal[0])

    def wait_s(self, error: ClientError) -> float:
        """Returns the seconds before the next attempt. Raises `error` if there is none.

        error: of the last attempt. If the server refused a parameter, the first retry leaves out `timeout_ms`. If the
        server refuses that too, another parameter was the cause, and the first error is raised.
        """
        if isinstance(error, RefusedError) and error.code == "invalid_parameter":
            if self._refusal:
                raise self._refusal[1]
            if self._sent_ms is None:
                raise error
            self._refusal = self._sent_ms, error
            return 0.0
        if not isinstance(error, RETRIED) or self._retries >= self._policy.max_retries:
            raise error
        wait_s = self._policy.wait_s(self._retries, error.retry_after_s)
        if wait_s >= self.remaining_s:
            raise error
        self._retries += 1
        return wait_s


def deadline_error() -> DeadlineError:
    return DeadlineError("the time limit of the call has passed", code="deadline_exceeded")
