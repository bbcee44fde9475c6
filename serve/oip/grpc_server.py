"""The gRPC server. It has the service inference.GRPCInferenceService for clients, and grpc.health.v1 for probes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from serve.control.beta_choice import ClientIdentity
from serve.errors import GrpcPortTakenError, InvalidRequestError, NotReadyError, UnknownModelError
from serve.http.client_identity import only_value
from serve.http.problems import INTERNAL, oip_problem_type
from serve.inference.service import Service
from serve.oip.grpc_messages import decode_message, encode_message
from serve.oip.infer import infer, request_limits
from serve.oip.metadata import (
    find_model,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from serve.oip.proto import inference_pb2 as pb
from serve.oip.statistics import Statistics
from serve.settings import grpc_address
from serve.telemetry.logs import log_event
from serve.telemetry.request_trace import REQUEST_TRACE, RequestTrace

if TYPE_CHECKING:
    from serve.telemetry.tracing import Tracing

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
STATUS_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # not RESOURCE_EXHAUSTED, on which clients try again
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
STREAM_ROUTE = f"/{SERVICE.full_name}/ModelStreamInfer"
INFER_ROUTES = frozenset({f"/{SERVICE.full_name}/ModelInfer", STREAM_ROUTE})
METHOD = "RPC"  # in place of an HTTP method, in metrics and logs

logger = logging.getLogger("tureen.access")

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Coroutine[Any, Any, Message]]


class GrpcServer:
    """The gRPC server of one `Service`. It must be opened after the service, and closed before the service."""

    def __init__(
        self, service: Service, statistics: Statistics, *, shares_port: bool = False, tracing: Tracing | None = None
    ) -> None:
        """statistics: the counters, which the HTTP routes under /v2 share.

        shares_port: whether several worker processes listen on the same port. tracing: receives a trace of each
        inference request; None: no traces.
        """
        self._service = service
        self._address = grpc_address(service.settings)
        self._server = grpc.aio.server(
            # gRPC reads a whole message before the service can admit its request, so this bounds the memory of
            # messages. Twice max_requests leaves room for health and metadata when inference has reached max_requests.
            maximum_concurrent_rpcs=2 * service.settings.max_requests,
            options=[
                ("grpc.max_receive_message_length", service.settings.max_request_bytes),
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only, against compression bombs
            ],
        )
        handlers = {
            SERVICE.full_name: _Methods(service, statistics, tracing).handlers(),
            HEALTH: _Health(service).handlers(),
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items()]
        )

    async def open(self) -> int:
        """Starts to listen, and returns the port. Raises GrpcPortTakenError if the server cannot listen on it."""
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise GrpcPortTakenError(self._address) from None
        await self._server.start()
        return port

    async def close(self, grace_s: float) -> None:
        """Refuses new requests, waits at most grace_s seconds for those in progress, and stops the server."""
        await self._server.stop(grace_s)


class _Methods:
    """The methods of inference.GRPCInferenceService."""

    def __init__(self, service: Service, statistics: Statistics, tracing: Tracing | None) -> None:
        self._service = service
        self._statistics = statistics
        self._tracing = tracing

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Returns the handler of each gRPC method, by the name of the method in inference.proto."""
        methods: dict[str, Unary] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            serialization = _serialization(
                *map(message_factory.GetMessageClass, (method.input_type, method.output_type))
            )
            if method.name == "ModelStreamInfer":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._stream, **serialization)
            else:
                handle = self._with_status(methods[method.name], f"/{SERVICE.full_name}/{method.name}")
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(handle, **serialization)
        return handlers

    def _with_status(self, method: Unary, route: str) -> Unary:
        """Returns a handler that calls `method`, and turns an exception into a gRPC status.

        The handler logs each call and updates the metrics, under the name `route`.
        """

        async def handle(request: Message | InvalidRequestError, context: Context) -> Message:
            started = self._begin()
            status, detail = grpc.StatusCode.CANCELLED, ""
            try:
                response = await method(_decoded(request), context)
                status = grpc.StatusCode.OK
                return response
            except Exception as error:  # noqa: BLE001 - the client gets a status, and never the text of an unknown error
                status, detail = self._error_status(error)
            finally:
                self._record(route, status, time.perf_counter() - started, context)
            return await context.abort(status, detail)

        return handle

    async def _stream(
        self, requests: AsyncIterator[pb.ModelInferRequest | InvalidRequestError], context: Context
    ) -> AsyncIterator[Message]:
        """Yields a response to each request of a stream, in order. The response to a failed request has the error."""
        async for request in requests:
            started = self._begin()
            status = grpc.StatusCode.CANCELLED
            try:
                infer_response = await self._infer(_decoded(request), context)
                response = pb.ModelStreamInferResponse(infer_response=infer_response)
                status = grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 - as in _with_status
                status, detail = self._error_status(error)
                response = pb.ModelStreamInferResponse(
                    error_message=detail, infer_response=pb.ModelInferResponse(id=getattr(request, "id", ""))
                )
            finally:
                self._record(STREAM_ROUTE, status, time.perf_counter() - started, context)
            yield response

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        find_model(self._service, request.model_name, request.model_version)
        remaining_s = context.time_remaining()
        timeout_ms = self._service.settings.timeout_ms
        if remaining_s is not None:
            timeout_ms = min(timeout_ms, max(1, math.ceil(1000 * remaining_s)))
        with self._statistics.request():
            client = _client_identity(context)
            inference = decode_message(request, request_limits(self._service))
            with self._service.admit(inference.images, timeout_ms=timeout_ms) as admission:
                return encode_message(await infer(inference, admission, self._statistics, client))

    async def _server_live(self, request: pb.ServerLiveRequest, context: Context) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: pb.ServerReadyRequest, context: Context) -> Message:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    async def _model_ready(self, request: pb.ModelReadyRequest, context: Context) -> Message:
        try:
            find_model(self._service, request.name, request.version)
        except (UnknownModelError, NotReadyError):
            return pb.ModelReadyResponse(ready=False)  # a response and not an error, as clients expect
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def _server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> Message:
        return ParseDict(server_metadata(), pb.ServerMetadataResponse())

    async def _model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> Message:
        model = find_model(self._service, request.name, request.version)
        return ParseDict(model_metadata(model), pb.ModelMetadataResponse())

    async def _model_config(self, request: pb.ModelConfigRequest, context: Context) -> Message:
        model = find_model(self._service, request.name, request.version)
        return ParseDict({"config": model_config(model, self._service.settings)}, pb.ModelConfigResponse())

    async def _model_statistics(self, request: pb.ModelStatisticsRequest, context: Context) -> Message:
        name = request.name or self._service.model.bundle.manifest.name  # "" means all models, and the server has one
        model = find_model(self._service, name, request.version)
        return ParseDict(model_statistics(model, self._statistics, self._service.metrics), pb.ModelStatisticsResponse())

    async def _repository_index(self, request: pb.RepositoryIndexRequest, context: Context) -> Message:
        models = repository_index(self._service.model, is_ready=self._service.is_ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    def _error_status(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        """Returns the gRPC status and the message of the response to an error. Counts the error in the metrics."""
        kind = oip_problem_type(error)
        self._service.metrics.count_rejection(kind.code)
        if kind is INTERNAL:  # the error is unknown, so its message is not for clients
            logger.error("unhandled", exc_info=error)
            return grpc.StatusCode.INTERNAL, "internal error: the server log has the cause"
        return STATUS_CODES.get(kind.status, grpc.StatusCode.INTERNAL), str(error)

    def _begin(self) -> float:
        if self._tracing is not None:
            REQUEST_TRACE.set(RequestTrace())
        return time.perf_counter()

    def _record(self, route: str, status: grpc.StatusCode, seconds: float, context: Context) -> None:
        self._service.metrics.count_request(route, METHOD, status.name, seconds)
        event = {"method": METHOD, "route": route, "status": status.name, "ms": round(1000 * seconds, 3)}
        trace = REQUEST_TRACE.get()
        if self._tracing is not None and trace is not None and route in INFER_ROUTES:
            event["trace_id"] = self._tracing.record(
                route.removeprefix("/"),
                {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)},
                trace,
                seconds=seconds,
                is_failed=status in SERVER_FAULTS,
                attributes={
                    "rpc.system": "grpc",
                    "rpc.service": SERVICE.full_name,
                    "rpc.method": route.rpartition("/")[2],
                    "rpc.grpc.status_code": status.value[0],
                },
            )
        log_event(logger, logging.INFO if route in INFER_ROUTES else logging.DEBUG, "request", event)


def _client_identity(context: Context) -> ClientIdentity:
    """Returns the identity of the client, from its address and the metadata x-api-key and x-request-key of the call.

    Raises MalformedRequestError if one of these keys occurs more than once.
    """

    def value(name: str) -> str | None:
        metadata = context.invocation_metadata() or ()
        return only_value(name, [text for key, text in metadata if key == name and isinstance(text, str)])

    api_key = value("x-api-key")
    address = context.peer().rpartition(":")[0]  # without the port, which differs for each connection
    return ClientIdentity(None, api_key, value("x-request-key") or api_key or address)


def _serialization(request_type: type[Message], response_type: type[Message]) -> dict[str, Any]:
    """Returns the functions that decode the request and encode the response of a method, as keyword arguments for grpc.

    The decoder returns an InvalidRequestError and does not raise it. gRPC would send a raised error as the status
    UNKNOWN, with the library's text.
    """

    def decode(data: bytes) -> Message | InvalidRequestError:
        try:
            return request_type.FromString(data)
        except DecodeError:
            return InvalidRequestError(f"the request is not a message of the type {request_type.DESCRIPTOR.full_name}")

    return {"request_deserializer": decode, "response_serializer": response_type.SerializeToString}


def _decoded(request: T | InvalidRequestError) -> T:
    """Returns a decoded request. If the decoder returned an error in its place, raises that error."""
    if isinstance(request, InvalidRequestError):
        raise request
    return request


class _Health:
    """The service grpc.health.v1. Its method Check, which probes call, returns SERVING while the server is ready."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        serialization = _serialization(health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
        return {"Check": grpc.unary_unary_rpc_method_handler(self._check, **serialization)}

    async def _check(
        self, request: health_pb2.HealthCheckRequest | InvalidRequestError, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if isinstance(request, InvalidRequestError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
        if request.service not in ("", SERVICE.full_name):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"the service is unknown: use {SERVICE.full_name}")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._service.is_ready else status.NOT_SERVING)
