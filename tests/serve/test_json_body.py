import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidParameterError
from serve.json_body import parse_json

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}"\\'), max_size=10)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(value=values, is_ascii=st.booleans())
def test_a_value_passes_at_its_own_depth_and_not_at_one_less(value, is_ascii):
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert parse_json(body, max_bytes=len(body), max_depth=depth(value)) == value
    if depth(value):
        with pytest.raises(InvalidParameterError, match="nested"):
            parse_json(body, max_bytes=len(body), max_depth=depth(value) - 1)


@given(body=st.binary(max_size=50) | st.text('[]{}",:\\1 ', max_size=50).map(str.encode))
def test_whatever_the_bytes_only_our_error_comes_of_it(body):
    with contextlib.suppress(InvalidParameterError):
        parse_json(body, max_bytes=50, max_depth=5)


def test_size_and_depth_are_refused_before_anything_is_parsed():
    with pytest.raises(InvalidParameterError, match="5 bytes"):
        parse_json(b"[1, 2]", max_bytes=5, max_depth=1)
    with pytest.raises(InvalidParameterError, match="nested"):
        parse_json(b"[" * 1_000_000, max_bytes=1_000_000, max_depth=20)
    with pytest.raises(InvalidParameterError, match="not JSON"):
        parse_json('[1, "é"]'.encode("utf-16"), max_bytes=100, max_depth=1)
