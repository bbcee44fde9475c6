from serve.connection.impatience import Impatience
from serve.limits import ConnectionLimits

LIMITS = ConnectionLimits(refusal_delay_s=0.2, max_delayed_refusals=2)


def delays(*times_s, delayed=0):
    """The delay of the refusal at each of these times, with a Retry-After of one second."""
    client = Impatience(LIMITS)
    return [client.delay_s(now_s=now_s, retry_after_s=1, delayed=delayed) for now_s in times_s]


def test_a_request_that_repeats_before_retry_after_has_its_refusal_delayed():
    assert delays(0, 0.5, 0.9) == [0, 0.2, 0.2]


def test_a_client_that_waits_gets_each_refusal_immediately():
    assert delays(0, 1, 2) == [0, 0, 0]
    assert delays(0, 0.5, 1.7) == [0, 0.2, 0]  # Retry-After counts from the delayed refusal


def test_at_the_limit_no_further_refusal_is_delayed():
    assert delays(0, 0.1, delayed=1) == [0, 0.2]
    assert delays(0, 0.1, delayed=2) == [0, 0]
