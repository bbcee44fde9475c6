import httpx2
import pytest

from tureen.client.attempts import Attempts, RetryPolicy, ServerTimeout
from tureen.client.client_errors import ConnectionLostError, DeadlineError, UnreachableError
from tureen.client.transport import CONNECT_TIMEOUT_S, PhaseTimeouts, http_options, transport_error
from tureen.errors import ArgumentError


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "http://[::", None])
def test_a_url_without_http_or_a_host_is_refused(url):
    with pytest.raises(ArgumentError, match="the URL has another form"):
        http_options(url, None, None, None)


def test_the_api_key_is_in_its_header_beside_those_of_the_caller():
    options = http_options("http://host/prefix", "secret", {"X-Request-Key": "a"}, None)
    assert {"X-API-Key": "secret", "X-Request-Key": "a"}.items() <= options["headers"].items()
    assert options["base_url"].path == "/prefix/" or options["base_url"].path == "/prefix"


def test_each_phase_of_a_request_has_the_time_that_is_left():
    now_s = 0.0
    attempts = Attempts(60, RetryPolicy(), ServerTimeout(), lambda: now_s)
    timeouts = PhaseTimeouts(attempts)
    assert [timeouts.get(phase) for phase in ("pool", "connect", "read")] == [60, CONNECT_TIMEOUT_S, 60]
    now_s = 59.0
    assert [timeouts.get(phase) for phase in ("connect", "write", "read")] == [1, 1, 1]
    now_s = 61.0
    assert 0 < timeouts.get("read") < 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ConnectError("x"), UnreachableError),
        (httpx2.ConnectTimeout("x"), UnreachableError),
        (httpx2.PoolTimeout("x"), UnreachableError),
        (httpx2.ReadTimeout("x"), DeadlineError),
        (httpx2.WriteTimeout("x"), DeadlineError),
        (httpx2.ReadError("x"), ConnectionLostError),
        (httpx2.RemoteProtocolError("x"), ConnectionLostError),
    ],
)
def test_an_error_of_the_connection_says_whether_a_byte_was_sent(error, expected):
    assert type(transport_error(error)) is expected
