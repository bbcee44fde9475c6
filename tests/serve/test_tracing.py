"""Traces by a real OTLP receiver: what a collector gets of a request."""

import http.client
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve.settings import Settings
from tests.serve.test_drain import png

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def receiver():
    """Its URL, and the spans that it has got."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_a_request_is_a_span_in_its_clients_trace_with_its_stages_in_it(start_server, receiver):
    url, spans = receiver
    server = start_server("--otlp-endpoint", url)
    server.wait_until_ready()
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "find-me"}
        connection.request("POST", "/classify?beta=0.7", png(), headers)
        assert connection.getresponse().status == 200
    assert server.end() == 0
    (request,) = [span for span in spans if span.name == "POST /classify"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    told = {attribute.key: attribute.value for attribute in request.attributes}
    assert told["tureen.request_id"].string_value == "find-me"
    assert told["tureen.beta"].double_value == 0.7
    assert told["http.response.status_code"].int_value == 200
    stages = {span.name: span for span in spans if span.parent_span_id == request.span_id}
    assert set(stages) == {"decode", "queue", "inference"}
    assert stages["decode"].end_time_unix_nano <= stages["inference"].start_time_unix_nano
    assert request.start_time_unix_nano < stages["inference"].end_time_unix_nano <= request.end_time_unix_nano
    (event,) = [line for line in server.log("request") if line["request_id"] == "find-me"]
    assert event["trace_id"] == TRACE


def test_an_endpoint_is_a_url():
    with pytest.raises(ValueError, match="otlp_endpoint"):
        Settings(bundle="b", otlp_endpoint="localhost:4318")
