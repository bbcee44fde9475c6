"""Sends a trace of each request to an OpenTelemetry collector: a server span with decode, queue and inference spans.

`Tracing.record` creates the spans after the response, from times that the server measures for its metrics. The
OpenTelemetry SDK sends the spans from a background thread, and drops them if the collector is too slow. This module
needs the extra [otel]. The server imports it only if --otlp-endpoint is set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import tureen
from serve.telemetry.request_trace import RequestTrace

EXPORT_PATH = "/v1/traces"  # the path of OTLP over HTTP
CLOSE_S = 3.0  # the exit of the process waits at most this long for the last spans


class Tracing:
    """Exports the spans of one process to an OpenTelemetry collector, from a background thread."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: base URL of the collector. Environment variables OTEL_… set all other options of the SDK."""
        own = Resource.create({"service.name": "tureen", "service.version": tureen.__version__})
        resource = own.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME takes precedence
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + EXPORT_PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tureen.serve", tureen.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        name: str,
        headers: Mapping[str, str],
        trace: RequestTrace,
        *,
        seconds: float,
        is_failed: bool,
        attributes: Mapping[str, Any],
    ) -> str:
        """Exports the trace of a request that has just ended. Returns the trace id in hexadecimal.

        name: of the server span. headers: of the request, with lower-case names; if they have a valid W3C traceparent,
        the span belongs to the trace of the client. seconds: duration of the request. is_failed: whether the server
        caused an error. attributes: of the server span; those that are None are left out.
        """
        clock_ns = time.time_ns() - time.monotonic_ns()  # offset from monotonic time to Unix time

        def at(monotonic_s: float) -> int:
            return clock_ns + round(1e9 * monotonic_s)

        end_s = time.monotonic()
        span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            SpanKind.SERVER,
            {**_without_none(attributes), **_without_none(_model_of(trace))},
            start_time=at(end_s - seconds),
        )
        if is_failed:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for betas, times in trace.images if span.is_recording() else ():
            decoded_s, batched_s = times.decode_began_s, times.batch_began_s
            of_batch: dict[str, Any] = {"tureen.betas": betas, "tureen.batch_size": times.batch_size}
            for stage, from_s, to_s, attributes_of_stage in (
                ("decode", decoded_s, decoded_s + times.decode_s, None),
                ("queue", batched_s - times.queue_s, batched_s, None),
                ("inference", batched_s, batched_s + times.inference_s, of_batch),
            ):
                child = self._tracer.start_span(stage, inside, attributes=attributes_of_stage, start_time=at(from_s))
                child.end(at(to_s))
        span.end(at(end_s))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Sends the remaining spans. Blocks for at most CLOSE_S seconds."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def _model_of(trace: RequestTrace) -> dict[str, Any]:
    if trace.manifest is None:  # refused before a model admitted it
        return {}
    return {"tureen.model": trace.manifest.name, "tureen.version": trace.manifest.version}


def _without_none(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
