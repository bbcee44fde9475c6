"""Traces for whoever collects them by OpenTelemetry: a span for each request, and one in it for each of its stages.

Imported only where an endpoint is set. The batcher and the engine know nothing of it: the stages' durations are theirs,
and their places are reckoned back from the answer. How much is sampled, and every other setting of the SDK, is
OpenTelemetry's own environment variables'.
"""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import tureen
from serve.access import access_fields, request_id_of

STAGES = ("decode", "queue", "inference")
NS_PER_MS = 1_000_000


class Tracing:
    """Where spans go, until it is closed."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: of an OTLP receiver over HTTP, such as http://localhost:4318."""
        resource = Resource.create({"service.name": "tureen", "service.version": tureen.__version__})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("tureen.serve")

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class TracingMiddleware:
    """A server span around each request, in the trace of its `traceparent` where it has one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = self._propagator.extract(dict(Headers(scope=scope)))
        span = self._tracer.start_span(scope["method"], parent, SpanKind.SERVER)
        if span.is_recording():
            access_fields(scope)["trace_id"] = f"{span.get_span_context().trace_id:032x}"

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            if span.is_recording():
                self._describe(span, scope)
            span.end()

    def _describe(self, span: Span, scope: Scope) -> None:
        fields = access_fields(scope)
        route = getattr(scope.get("route"), "path", "unmatched")
        span.update_name(f"{scope['method']} {route}")
        span.set_attributes(
            {
                "http.request.method": scope["method"],
                "http.route": route,
                "tureen.request_id": request_id_of(scope),
                **{f"tureen.{name}": fields[name] for name in ("beta", "code") if fields.get(name) is not None},
            }
        )
        durations_ns = [round(fields.get(stage, 0) * NS_PER_MS) for stage in STAGES]
        start_ns = time.time_ns() - sum(durations_ns)
        for stage, duration_ns in zip(STAGES, durations_ns, strict=True):
            if stage in fields:
                child = self._tracer.start_span(stage, set_span_in_context(span), start_time=start_ns)
                child.end(start_ns + duration_ns)
            start_ns += duration_ns
