"""Runs the HTTP parser over what a connection has read, and tells whose fault it is where that cannot go on.

Declines every offer to upgrade. Knows nothing about deadlines, limits or answers; those are
`serve.connection.http_connection`'s.
"""

from __future__ import annotations

import logging

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.errors import MalformedRequestError
from tureen.errors import TureenError

logger = logging.getLogger("tureen.serve")


class StopParsing(Exception):  # noqa: N818 - no error: how a callback ends the parser's run
    pass


def parse(protocol: HttpToolsProtocol, data: bytes) -> TureenError | None:
    """Feed the protocol's parser, which calls the protocol back; what is to be answered where it cannot go on."""
    try:
        _feed(protocol, data)
    except httptools.HttpParserCallbackError as error:
        cause = error.__context__
        if isinstance(cause, StopParsing):
            return None
        if not isinstance(cause, httptools.HttpParserError):
            logger.error("a callback of the parser failed", exc_info=cause)
            return TureenError("the server could not deal with this request; its log says more")
    except httptools.HttpParserError:
        pass
    else:
        return None
    return MalformedRequestError("the request is not sound HTTP/1.1")


def _feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """An offer to upgrade ends the parser's run with the head, as if all else were another protocol's, a body too.

    Java's HttpClient makes one (h2c) with its first request, and curl --http2 does; both go on in HTTP/1.1 where it
    is not taken. So the head is parsed once more, without it.
    """
    while True:
        parser = protocol.parser
        try:
            parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as offer:
            version = parser.get_http_version().encode()
            line = b"%b %b HTTP/%b\r\n" % (parser.get_method(), protocol.url, version)
            kept = [b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
            data = b"".join([line, *kept, b"\r\n", data[offer.args[0] :]])
            protocol.parser = httptools.HttpRequestParser(protocol)
