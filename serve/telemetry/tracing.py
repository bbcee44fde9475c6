"""Sends a trace of each request to an OpenTelemetry collector: a server span, and in it decode, queue and inference.

Spans are made when a request is over, from the times that were measured anyway: nothing is done for them before. The
SDK sends them from a thread of its own, and drops them where the collector does not keep up. Imported where an
endpoint is set; the extra [otel] brings what it needs.
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

EXPORT_PATH = "/v1/traces"  # where OTLP over HTTP takes them
CLOSE_S = 3.0  # the longest that the last spans hold up the end of the process, where the collector hangs


class Tracing:
    """The spans of one process, on their way to the collector."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: the collector's base URL; every other setting of the SDK is its own OTEL_… variable."""
        own = Resource.create({"service.name": "tureen", "service.version": tureen.__version__})
        resource = own.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME before the name given here
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
        """The request that is just over, as a trace; returns its id.

        headers: with lower-case names; where they have a sound W3C traceparent, the trace goes on. seconds: how long
        the request took. is_failed: whether the fault is ours.
        """
        clock_ns = time.time_ns() - time.monotonic_ns()  # what makes monotonic time the time of day

        def at(monotonic_s: float) -> int:
            return clock_ns + round(1e9 * monotonic_s)

        end_s = time.monotonic()
        span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            SpanKind.SERVER,
            {**_known(attributes), **_known(_model_of(trace))},
            start_time=at(end_s - seconds),
        )
        if is_failed:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for betas, answered in trace.images if span.is_recording() else ():
            decoded_s, batched_s = answered.decode_began_s, answered.batch_began_s
            of_batch: dict[str, Any] = {"tureen.betas": betas, "tureen.batch_size": answered.batch_size}
            for stage, from_s, to_s, attributes_of_stage in (
                ("decode", decoded_s, decoded_s + answered.decode_s, None),
                ("queue", batched_s - answered.queue_s, batched_s, None),
                ("inference", batched_s, batched_s + answered.inference_s, of_batch),
            ):
                child = self._tracer.start_span(stage, inside, attributes=attributes_of_stage, start_time=at(from_s))
                child.end(at(to_s))
        span.end(at(end_s))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what is left, for CLOSE_S at most. Blocks."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def _model_of(trace: RequestTrace) -> dict[str, Any]:
    if trace.manifest is None:  # refused before any model was to answer it
        return {}
    return {"tureen.model": trace.manifest.name, "tureen.version": trace.manifest.version}


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
