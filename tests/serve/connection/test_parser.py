import httptools
import pytest

from serve.connection.parser import StopParsing, parse
from serve.errors import MalformedRequestError


class Recorder:
    """The callbacks of a protocol: remembers each request, and fails with the error it was given."""

    def __init__(self, error=None):
        self.parser = httptools.HttpRequestParser(self)
        self.error = error
        self.requests = []

    def on_message_begin(self):
        self.url, self.headers, self.body = b"", [], b""

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_headers_complete(self):
        if self.error is not None:
            raise self.error

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        if not self.parser.should_upgrade():
            self.requests.append((self.url, self.headers, self.body))


REQUEST = b"POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\n\r\nok"
HEADERS = [(b"host", b"b"), (b"content-length", b"2")]


@pytest.mark.parametrize("size", [1, 7, len(REQUEST)])
def test_a_request_is_parsed_in_pieces_of_any_size(size):
    recorder = Recorder()
    for start in range(0, len(REQUEST), size):
        assert parse(recorder, REQUEST[start : start + size]) is None
    assert recorder.requests == [(b"/a", HEADERS, b"ok")]


def test_an_upgrade_is_declined_and_the_body_belongs_to_the_request():
    recorder = Recorder()
    offer = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert parse(recorder, offer) is None
    assert recorder.requests == [(b"/a", [*HEADERS, (b"connection", b"Upgrade")], b"ok")]


def test_bytes_that_are_not_http_are_an_error_of_the_client():
    assert isinstance(parse(Recorder(), b"NONSENSE\r\n\r\n"), MalformedRequestError)


def test_a_callback_that_stops_parsing_is_no_error():
    assert parse(Recorder(StopParsing()), REQUEST) is None


def test_a_defect_in_a_callback_is_logged_and_no_error_of_the_client(caplog):
    error = parse(Recorder(ZeroDivisionError()), REQUEST)
    assert not isinstance(error, MalformedRequestError)
    assert "its log has the cause" in str(error)
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
