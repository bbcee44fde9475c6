import asyncio
import json

import pytest

from serve.connection.error_bytes import error_response_of
from serve.errors import OverloadedError


def parts(data):
    head, _, body = data.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    return line, dict(header.lower().split(b": ", 1) for header in headers), body


@pytest.mark.parametrize("keep_alive", [True, False])
def test_an_error_is_a_whole_response_with_its_id(keep_alive):
    response = error_response_of(OverloadedError(7))
    line, headers, body = parts(response.to_bytes("id-1", [(b"date", b"d")], keep_alive=keep_alive, is_head=False))
    assert line == b"HTTP/1.1 429 Too Many Requests"
    assert (headers[b"x-request-id"], headers[b"retry-after"], headers[b"date"]) == (b"id-1", b"7", b"d")
    assert int(headers[b"content-length"]) == len(body)
    assert json.loads(body)["code"] == "overloaded"
    assert (b"connection" in headers) is not keep_alive


def test_a_response_to_head_has_no_body():
    response = error_response_of(OverloadedError())
    assert parts(response.to_bytes("a", [], keep_alive=True, is_head=True))[2] == b""


def test_below_v2_the_body_has_the_form_of_the_protocol():
    _, _, body = parts(
        error_response_of(OverloadedError(), "/v2/models/m/infer").to_bytes("a", [], keep_alive=True, is_head=False)
    )
    assert list(json.loads(body)) == ["error"]


def test_an_error_is_encoded_once():
    assert error_response_of(OverloadedError(3)) is error_response_of(OverloadedError(3))
    assert error_response_of(OverloadedError(3)) is not error_response_of(OverloadedError(4))


def test_the_response_sent_by_asgi_is_the_same():
    sent = []

    async def send(message):
        sent.append(message)

    response = error_response_of(OverloadedError(7))
    asyncio.run(response.send(send, "id-1"))
    start, body = sent
    _, headers, data = parts(response.to_bytes("id-1", [], keep_alive=True, is_head=False))
    assert (start["status"], dict(start["headers"])) == (429, headers)
    assert body["body"] == data
