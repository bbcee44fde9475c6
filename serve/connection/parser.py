"""Feeds received bytes to the HTTP parser, and turns the parser's failures into errors of the client or the server.

Declines every upgrade to another protocol. Knows nothing about deadlines, limits or responses.
"""

from __future__ import annotations

import logging

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.errors import MalformedRequestError
from tureen.errors import TureenError

logger = logging.getLogger("tureen.serve")


class StopParsing(Exception):  # noqa: N818 - not an error: a callback raises it to end parsing
    pass


def parse(protocol: HttpToolsProtocol, data: bytes) -> TureenError | None:
    """Parses received bytes, and calls the callbacks of `protocol`.

    Returns the error for the client: MalformedRequestError if the bytes are not valid HTTP, or a TureenError if a
    callback failed. Returns None if there is no error, or if a callback raised StopParsing.
    """
    try:
        _feed(protocol, data)
    except httptools.HttpParserCallbackError as error:
        cause = error.__context__
        if isinstance(cause, StopParsing):
            return None
        if not isinstance(cause, httptools.HttpParserError):
            logger.error("a parser callback failed", exc_info=cause)
            return TureenError("the server failed on this request; its log has the cause")
    except httptools.HttpParserError:
        pass
    else:
        return None
    return MalformedRequestError("the request is not valid HTTP/1.1")


def _feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Feeds bytes to the parser. If a head has an Upgrade header, parses it again without that header.

    After such a head, the parser stops and treats further bytes, even a body, as another protocol. Java's HttpClient
    and `curl --http2` offer an upgrade (h2c) with their first request. If the server ignores the offer, they continue
    in HTTP/1.1. Raises httptools.HttpParserError if the bytes are not HTTP.
    """
    while True:
        parser = protocol.parser
        try:
            parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            version = parser.get_http_version().encode()
            line = b"%b %b HTTP/%b\r\n" % (parser.get_method(), protocol.url, version)
            kept = [b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
            data = b"".join([line, *kept, b"\r\n", data[upgrade.args[0] :]])
            protocol.parser = httptools.HttpRequestParser(protocol)
