import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.connection.head_rules import PROBES, head_error
from serve.limits import ConnectionLimits, is_origin


@given(
    pieces=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5000)), max_size=30),
    rate=st.integers(0, 2000),
)
def test_a_body_is_late_exactly_where_it_is_below_the_rate_after_the_grace_or_past_its_end(pieces, rate):
    limits = ConnectionLimits(min_body_rate=rate, body_grace_s=2, body_timeout_s=30)
    elapsed, received = 0.0, 0
    for seconds, count in pieces:
        elapsed, received = elapsed + seconds, received + count
        is_below = elapsed > 2 and received < rate * (elapsed - 2)
        assert limits.is_late(elapsed, received) == (is_below or elapsed > 30)


@given(
    host=st.sampled_from([b"localhost", b"LocalHost", b"[::1]", b"::1", b"localhost."]) | st.binary(max_size=12),
    port=st.none() | st.integers(0, 99999),
)
def test_only_a_trusted_name_passes_whatever_the_bytes(host, port):
    limits = ConnectionLimits(hosts=frozenset({"localhost", "[::1]"}))
    value = host if port is None else host + b":%d" % port
    passes = head_error(limits, "1.1", b"/", [(b"host", value)]) is None
    assert passes == (host.lower() in (b"localhost", b"[::1]"))


@pytest.mark.parametrize("hosts", [None, frozenset({"localhost"})])
def test_health_is_answered_in_http_1_0_without_a_host_and_nothing_else_where_hosts_are_restricted(hosts):
    limits = ConnectionLimits(hosts=hosts)
    for path in (*PROBES, b"/readyz?verbose"):
        assert head_error(limits, "1.0", path, []) is None
        assert head_error(limits, "1.1", path, []) is not None
        assert head_error(limits, "1.0", path, [(b"host", b"a"), (b"host", b"b")]) is not None
    for path in (b"/classify", b"/healthz/..", b"/ui", b"/v2"):
        assert (head_error(limits, "1.0", path, []) is None) == (hosts is None)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("https://app.example.com", True),
        ("http://localhost:5173", True),
        ("http://[::1]:8080", True),
        ("null", True),
        ("chrome-extension://abcdefgh", True),
        ("https://app.example.com/", False),
        ("https://app.example.com/path", False),
        ("app.example.com", False),
        ("https://*.example.com", False),
        ("", False),
    ],
)
def test_what_is_an_origin(text, is_one):
    assert is_origin(text) == is_one
