import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.limits import ConnectionLimits, is_host_name, is_loopback, is_origin


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
def test_origins_are_recognised(text, is_one):
    assert is_origin(text) == is_one


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("localhost", True), ("A.example", True), ("[::1]", True), ("a.example:80", False), ("::1", False), ("", False)],
)
def test_host_names_without_a_port_are_recognised(text, is_one):
    assert is_host_name(text) == is_one


@pytest.mark.parametrize(
    ("address", "is_local"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_which_addresses_only_this_machine_reaches(address, is_local):
    assert is_loopback(address) == is_local
