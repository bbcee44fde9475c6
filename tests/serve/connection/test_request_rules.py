import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.connection.request_rules import CHUNK_BYTES, PROBES, chunk_error, content_length, has_body, head_error
from serve.errors import MalformedRequestError, TooManyChunksError
from serve.limits import ConnectionLimits


@given(
    host=st.sampled_from([b"localhost", b"LocalHost", b"[::1]", b"::1", b"localhost."]) | st.binary(max_size=12),
    port=st.none() | st.integers(0, 99999),
)
def test_only_a_trusted_name_passes_for_any_bytes(host, port):
    limits = ConnectionLimits(hosts=frozenset({"localhost", "[::1]"}))
    value = host if port is None else host + b":%d" % port
    passes = head_error(limits, "1.1", b"/", [(b"host", value)]) is None
    assert passes == (host.lower() in (b"localhost", b"[::1]"))


@pytest.mark.parametrize("hosts", [None, frozenset({"localhost"})])
def test_only_health_is_served_in_http_1_0_without_a_host_if_hosts_are_restricted(hosts):
    limits = ConnectionLimits(hosts=hosts)
    for path in (*PROBES, b"/readyz?verbose"):
        assert head_error(limits, "1.0", path, []) is None
        assert head_error(limits, "1.1", path, []) is not None
        assert head_error(limits, "1.0", path, [(b"host", b"a"), (b"host", b"b")]) is not None
    for path in (b"/classify", b"/healthz/..", b"/ui", b"/v2"):
        assert (head_error(limits, "1.0", path, []) is None) == (hosts is None)


def test_a_request_has_a_body_if_its_headers_announce_one():
    assert not has_body([])
    assert not has_body([(b"content-length", b"0")])
    assert has_body([(b"content-length", b"12")])
    assert has_body([(b"transfer-encoding", b"chunked")])
    assert content_length([(b"host", b"a"), (b"content-length", b"12")]) == 12
    assert content_length([(b"transfer-encoding", b"chunked")]) == 0


def test_a_chunked_body_has_limits_on_its_chunks_and_on_the_bytes_around_them():
    limits = ConnectionLimits(max_chunks=3, max_head_bytes=100)
    assert chunk_error(limits, chunks=3, framing=100 + 3 * CHUNK_BYTES) is None
    assert isinstance(chunk_error(limits, chunks=4, framing=0), TooManyChunksError)
    assert isinstance(chunk_error(limits, chunks=3, framing=101 + 3 * CHUNK_BYTES), MalformedRequestError)
