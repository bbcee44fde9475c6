import pytest

from tureen.client.attempts import MAX_BACKOFF_S, SERVER_TIMEOUT_MS, Attempts, RetryPolicy, ServerTimeout
from tureen.client.client_errors import (
    ConnectionLostError,
    DeadlineError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    ServerError,
    UnreachableError,
)
from tureen.errors import ArgumentError


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def longest(low, high):
    return high


def attempts(timeout_s=5.0, *, max_retries=4, clock=None, server_timeout=None):
    return Attempts(timeout_s, RetryPolicy(max_retries, longest), server_timeout or ServerTimeout(), clock or Clock())


def overloaded(retry_after_s=None):
    return OverloadedError("overloaded", code="overloaded", status=429, retry_after_s=retry_after_s)


def refused(code="invalid_parameter"):
    return RefusedError("refused", code=code, status=422)


def test_the_wait_grows_to_a_limit_and_is_random_between_zero_and_its_bound():
    policy = RetryPolicy(max_retries=4, uniform=longest)
    assert [policy.wait_s(retry, None) for retry in (0, 1, 2, 3, 100)] == [0.1, 0.2, 0.4, 0.8, MAX_BACKOFF_S]
    waits = {RetryPolicy().wait_s(3, None) for _ in range(20)}
    assert len(waits) > 1
    assert all(0 <= wait <= 0.8 for wait in waits)


def test_the_wait_is_never_shorter_than_retry_after():
    assert all(RetryPolicy().wait_s(retry, 2.0) >= 2.0 for retry in range(10))


@pytest.mark.parametrize(
    "error",
    [
        overloaded(),
        NotReadyError("loading", code="not_ready", status=503),
        UnreachableError("no connection", code="unreachable"),
    ],
)
def test_a_request_that_the_server_did_not_start_is_sent_again_a_limited_number_of_times(error):
    call = attempts(max_retries=2)
    assert call.wait_s(error) == 0.1
    assert call.wait_s(error) == 0.2
    with pytest.raises(type(error)):
        call.wait_s(error)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLostError("lost", code="connection_lost"),
        DeadlineError("late", code="deadline_exceeded", status=504),
        ServerError("failed", code="inference_failed", status=500),
        refused("undecodable_image"),
    ],
)
def test_any_other_error_is_raised(error):
    with pytest.raises(type(error)):
        attempts().wait_s(error)


def test_no_wait_reaches_beyond_the_deadline():
    clock = Clock()
    call = attempts(3.0, clock=clock)
    assert call.wait_s(overloaded(2)) == pytest.approx(2.1)
    clock.now_s += 2.1
    with pytest.raises(OverloadedError):
        call.wait_s(overloaded(1))


def test_after_the_deadline_there_is_no_attempt():
    clock = Clock()
    call = attempts(3.0, clock=clock)
    clock.now_s += 3.0
    with pytest.raises(DeadlineError):
        call.parameters()


def test_the_server_receives_the_remaining_time_of_each_attempt():
    clock = Clock()
    call = attempts(3.0, clock=clock)
    assert call.parameters() == {"timeout_ms": "3000"}
    clock.now_s += 1.0
    assert call.parameters() == {"timeout_ms": "2000"}
    clock.now_s += 1.9999
    assert call.parameters() == {"timeout_ms": "1"}


def test_a_deadline_beyond_that_of_the_server_is_not_sent():
    assert attempts(SERVER_TIMEOUT_MS / 1000 + 1).parameters() == {}


def test_a_refused_timeout_is_left_out_immediately_and_in_later_calls():
    server_timeout = ServerTimeout()
    call = attempts(5.0, server_timeout=server_timeout)
    assert call.parameters() == {"timeout_ms": "5000"}
    assert call.wait_s(refused()) == 0
    assert call.parameters() == {}
    call.succeeded()
    assert attempts(5.0, server_timeout=server_timeout).parameters() == {}
    assert attempts(4.0, server_timeout=server_timeout).parameters() == {"timeout_ms": "4000"}


def test_if_another_parameter_was_wrong_the_first_error_is_raised_and_nothing_is_learned():
    server_timeout = ServerTimeout()
    call = attempts(5.0, server_timeout=server_timeout)
    call.parameters()
    first = refused()
    assert call.wait_s(first) == 0
    call.parameters()
    with pytest.raises(RefusedError) as raised:
        call.wait_s(refused())
    assert raised.value is first
    assert attempts(5.0, server_timeout=server_timeout).parameters() == {"timeout_ms": "5000"}


def test_a_wrong_parameter_without_a_timeout_is_raised():
    call = attempts(60.0)
    call.parameters()
    with pytest.raises(RefusedError):
        call.wait_s(refused())


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_deadline_is_above_zero(timeout_s):
    with pytest.raises(ArgumentError, match="timeout_s"):
        attempts(timeout_s)


def test_the_number_of_retries_is_not_negative():
    with pytest.raises(ArgumentError, match="max_retries is -1"):
        RetryPolicy(-1)
