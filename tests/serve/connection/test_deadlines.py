import pytest

from serve.connection.deadlines import Phase, late_error, must_abort
from serve.errors import HeadTimeoutError, SlowBodyError
from serve.limits import ConnectionLimits

LIMITS = ConnectionLimits(
    head_timeout_s=10,
    probe_timeout_s=2,
    body_timeout_s=30,
    body_grace_s=2,
    min_body_rate=1000,
    send_timeout_s=20,
    linger_s=5,
)


def error(phase, elapsed_s, received=0, *, is_probe=False):
    return late_error(LIMITS, phase, elapsed_s=elapsed_s, received=received, is_probe=is_probe)


def aborts(phase, elapsed_s, *, is_unsent):
    return must_abort(LIMITS, phase, elapsed_s=elapsed_s, is_unsent=is_unsent)


@pytest.mark.parametrize(("is_probe", "timeout_s"), [(False, 10), (True, 2)])
def test_a_head_has_a_deadline_whatever_arrives_and_that_of_a_probe_is_shorter(is_probe, timeout_s):
    assert error(Phase.HEAD, timeout_s, is_probe=is_probe) is None
    late = error(Phase.HEAD, timeout_s + 0.1, 10_000, is_probe=is_probe)
    assert isinstance(late, HeadTimeoutError)
    assert f"within {timeout_s} s" in str(late)


def test_a_body_is_late_below_its_rate_after_the_grace_and_at_its_deadline():
    assert error(Phase.BODY, 2) is None
    assert isinstance(error(Phase.BODY, 3, 999), SlowBodyError)
    assert error(Phase.BODY, 3, 1000) is None
    assert isinstance(error(Phase.BODY, 30.1, 10**9), SlowBodyError)


@pytest.mark.parametrize("phase", [Phase.RESPONSE, Phase.IDLE, Phase.LINGER])
def test_no_request_is_late_while_the_server_responds_or_the_connection_is_idle(phase):
    assert error(phase, 1e6) is None


def test_a_client_that_does_not_read_its_response_is_cut_off_after_it():
    for phase in (Phase.IDLE, Phase.LINGER):
        assert not aborts(phase, 20, is_unsent=True)
        assert aborts(phase, 20.1, is_unsent=True)
    for phase in (Phase.HEAD, Phase.BODY, Phase.RESPONSE):
        assert not aborts(phase, 1e6, is_unsent=True)


def test_a_client_that_does_not_close_is_cut_off_after_the_linger_time():
    assert not aborts(Phase.LINGER, 5, is_unsent=False)
    assert aborts(Phase.LINGER, 5.1, is_unsent=False)
    assert not aborts(Phase.IDLE, 1e6, is_unsent=False)  # keep_alive_s limits an idle connection
