"""Traces as a collector gets them: from a server process, over OTLP, as protobuf."""

import gzip
import io
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import run

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from PIL import Image

from serve.oip.proto import inference_pb2 as pb
from serve.settings_sources import parse_settings
from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.bundle.bundle import read_manifest
from tureen.bundle.examples import EXAMPLES

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
AT_ONCE = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # how often the SDK sends, in milliseconds


class Collector(ThreadingHTTPServer):
    """Receives what is exported over OTLP/HTTP."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.resources = []
        self.spans = []
        self.headers = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def traces(self):
        """The spans of each trace whose server span is there: it is sent last."""
        complete = {span.trace_id for span in list(self.spans) if span.kind == Span.SPAN_KIND_SERVER}
        return [[span for span in self.spans if span.trace_id == trace] for trace in complete]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        self.server.headers.append(self.headers)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(resource_spans.resource))
            for scope_spans in resource_spans.scope_spans:
                self.server.spans.extend(scope_spans.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def photo():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def attributes(of):
    attributes = {}
    for pair in of.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        attributes[pair.key] = [item.double_value for item in value.values] if kind == "array_value" else value
    return attributes


def by_name(trace):
    return {span.name: span for span in trace}


def assert_nested(spans, parent):
    """decode, queue and inference follow one another within their parent."""
    inner = [spans[name] for name in ("decode", "queue", "inference")]
    times = [time for span in inner for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert parent.start_time_unix_nano <= times[0]
    assert times[-1] <= parent.end_time_unix_nano
    assert {span.parent_span_id for span in inner} == {parent.span_id}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_is_one_trace_with_its_stages_inside_and_the_log_names_it(start_server, collector, photo, workers):
    server = start_server("--otlp-endpoint", collector.url, "--workers", workers, **AT_ONCE)
    server.wait_until_ready(workers)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    assert server.ask("POST", "/classify?beta=0.25", photo, headers)[0] == 200
    server.wait_for(collector.traces, "a trace")
    (trace,) = collector.traces()
    assert len(trace) == 4
    spans = by_name(trace)
    request = spans["POST /classify"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert_nested(spans, request)
    manifest = read_manifest(EXAMPLES / "cifar10")
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "tureen.request_id": "mine",
        "tureen.model": manifest.name,
        "tureen.version": manifest.version,
        "tureen.beta": 0.25,
        "tureen.beta_source": "request",
    }
    assert attributes(spans["inference"]) == {"tureen.betas": [0.25], "tureen.batch_size": 1}
    assert collector.resources[0]["service.name"] == "tureen"
    (line,) = [line for line in server.log("request") if line["route"] == "/classify"]
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)


def test_a_refused_request_has_a_trace_and_a_probe_has_none(start_server, collector, photo):
    server = start_server("--otlp-endpoint", collector.url, **AT_ONCE)
    server.wait_until_ready()
    for path in ("/healthz", "/readyz", "/metrics"):
        assert server.ask("GET", path)[0] == 200
    assert server.ask("POST", "/classify", b"no image", {"traceparent": "00-nonsense"})[0] == 415
    assert server.end() == 0  # which sends what is left
    (trace,) = collector.traces()
    (request,) = trace
    assert not request.parent_span_id
    assert attributes(request)["http.response.status_code"] == 415
    assert attributes(request)["error.type"] == "unsupported_image_type"
    assert request.status.code == Status.STATUS_CODE_UNSET  # the client's mistake, not the server's


def test_a_sweep_and_the_open_inference_protocol_are_traced_too(start_server, collector, photo):
    grpc_port = free_port()
    server = start_server("--otlp-endpoint", collector.url, "--grpc-port", grpc_port, **AT_ONCE)
    server.wait_until_ready()
    assert server.ask("POST", "/sweep?betas=0:1:0.5", photo)[0] == 200
    message = pb.ModelInferRequest(
        model_name="cifar10",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])],
        raw_input_contents=[len(photo).to_bytes(4, "little") + photo],
    )
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        infer(message, timeout=DEADLINE_S, wait_for_ready=True, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
    server.wait_for(lambda: len(collector.traces()) == 2, "both traces")
    traces = {name: by_name(trace) for trace in collector.traces() for name in by_name(trace)}
    sweep = traces["POST /sweep"]
    assert attributes(sweep["inference"]) == {"tureen.betas": [0, 0.5, 1], "tureen.batch_size": 3}
    call = traces["inference.GRPCInferenceService/ModelInfer"]
    request = call["inference.GRPCInferenceService/ModelInfer"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert_nested(call, request)
    assert attributes(request)["rpc.grpc.status_code"] == 0


def test_the_variables_of_the_sdk_name_the_service_and_sample(start_server, collector, photo):
    variables = {"OTEL_SERVICE_NAME": "digits", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"}
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    server = start_server("--otlp-endpoint", collector.url, **AT_ONCE, **variables, **sampler)
    server.wait_until_ready()
    assert server.ask("POST", "/classify", photo)[0] == 200
    assert server.ask("POST", "/classify", photo, {"traceparent": f"00-{TRACE}-{PARENT}-01"})[0] == 200
    assert server.end() == 0
    (trace,) = collector.traces()  # of the one whose caller wants it
    assert trace[0].trace_id.hex() == TRACE
    assert collector.resources[0]["service.name"] == "digits"
    assert collector.headers[0]["api-key"] == "secret"


def test_a_missing_collector_delays_no_request_and_no_shutdown(start_server, photo):
    server = start_server("--otlp-endpoint", f"http://127.0.0.1:{free_port()}", **AT_ONCE)
    server.wait_until_ready()
    for _ in range(5):
        assert server.ask("POST", "/classify", photo)[0] == 200
    assert server.end() == 0


def test_without_an_endpoint_neither_sdk_nor_exporter_is_imported():
    program = (
        "import sys, serve.server, serve.oip.grpc_server; print(*sys.modules)"  # FastAPI itself imports the bare API
    )
    modules = run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "serve.server" in modules
    assert not [name for name in modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]


def test_an_endpoint_that_is_no_url_fails_the_start(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["b", "--otlp-endpoint", "collector:4318"], {})
    assert re.search(r"--otlp-endpoint \(TUREEN_OTLP_ENDPOINT\)", capsys.readouterr().err)
