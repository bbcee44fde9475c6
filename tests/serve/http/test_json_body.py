import base64
import codecs
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidParameterError
from serve.http.json_body import decode_base64, parse_json

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}"\\'), max_size=10)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(value=values, is_ascii=st.booleans())
def test_a_value_passes_at_its_depth_and_not_at_one_less(value, is_ascii):
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert parse_json(body, max_bytes=len(body), max_depth=depth(value)) == value
    if depth(value):
        with pytest.raises(InvalidParameterError, match="nested"):
            parse_json(body, max_bytes=len(body), max_depth=depth(value) - 1)


@given(body=st.binary(max_size=50) | st.text('[]{}",:\\1 ', max_size=50).map(str.encode))
def test_any_bytes_parse_or_raise_the_documented_error(body):
    with contextlib.suppress(InvalidParameterError):
        parse_json(body, max_bytes=50, max_depth=5)


def test_size_and_depth_are_refused_before_anything_is_parsed():
    with pytest.raises(InvalidParameterError, match="5 bytes"):
        parse_json(b"[1, 2]", max_bytes=5, max_depth=1)
    with pytest.raises(InvalidParameterError, match="nested"):
        parse_json(b"[" * 1_000_000, max_bytes=1_000_000, max_depth=20)
    with pytest.raises(InvalidParameterError, match="not valid JSON"):
        parse_json('[1, "é"]'.encode("utf-16"), max_bytes=100, max_depth=1)


def test_a_byte_order_mark_is_no_part_of_the_json():
    assert parse_json(codecs.BOM_UTF8 + b'{"a": 1}', max_bytes=100, max_depth=1) == {"a": 1}


@given(
    data=st.binary(max_size=60),
    head=st.sampled_from(["", "data:;base64,", "data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"]),
    is_url_safe=st.booleans(),
    is_padded=st.booleans(),
    line=st.integers(1, 80),
    end=st.sampled_from(["", "\n", "\r\n", " "]),
)
def test_base64_is_read_in_every_form_that_encoders_write(data, head, is_url_safe, is_padded, line, end):
    encode = base64.urlsafe_b64encode if is_url_safe else base64.b64encode
    text = encode(data).decode()
    text = text if is_padded else text.rstrip("=")
    lines = end.join(text[i : i + line] for i in range(0, len(text), line)) + end
    assert decode_base64(head + lines) == data


@pytest.mark.parametrize(
    "text", ["%%%", "a", "aaaaa", "aa=a", "aGk===", "é", "data:,aGk=", "data:image/png,aGk=", "aGk,"]
)
def test_invalid_base64_is_refused(text):
    with pytest.raises(ValueError, match=r"(?i)base64|padding|ascii|excess|non-alphabet|number of data"):
        decode_base64(text)
