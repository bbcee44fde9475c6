"""The protocol's routes under /v2; what a request means is `serve.oip.request`'s, and a body `serve.oip.codec`'s."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serve.errors import InferRequestTooLargeError, InvalidRequestError, NotOfferedError, NotReadyError
from serve.http.body_stream import BodyMemory, cancel_on_disconnect, receive_body
from serve.http.client_identity import client_identity_of
from serve.http.direct_route import add_head_routes
from serve.http.problems import OIP_PREFIX, oip_openapi_responses
from serve.http.request_log import access_fields, arrived_s
from serve.inference.loaded_model import LoadedModel
from serve.inference.service import Service
from serve.oip.codec import HEADER_LENGTH, decode_request, encode_answer
from serve.oip.describe import (
    known_model,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from serve.oip.documented_routes import TAG, infer_body, infer_parameters, infer_response, path_parameters
from serve.oip.infer import infer, request_limits
from serve.oip.request import BETA
from serve.oip.statistics import Statistics

NOT_OFFERED = (
    "/systemsharedmemory/{rest:path}",
    "/cudasharedmemory/{rest:path}",
    "/trace/setting",
    "/logging",
    "/models/{name}/trace/setting",
    "/repository/models/{name}/load",
    "/repository/models/{name}/unload",
)


def add_oip_routes(app: FastAPI, service: Service, memory: BodyMemory) -> None:
    """Adds every route of the protocol, with and without a version; app.state.statistics is for gRPC to share.

    memory: of all its bodies, and those of the other routes.
    """
    app.state.statistics = statistics = Statistics()
    router = APIRouter(prefix=OIP_PREFIX, tags=[TAG])
    _add_server_routes(router, service, statistics)
    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model_routes(router, path, service, statistics, memory)
    add_head_routes(router)
    app.include_router(router)


def _add_server_routes(router: APIRouter, service: Service, statistics: Statistics) -> None:
    @router.get("", summary="The server and the extensions it offers")
    async def metadata() -> JSONResponse:
        return JSONResponse(server_metadata())

    # The bodies are for kserve's client, which reads them; tritonclient wants the status alone.
    @router.get("/health/live", summary="Is the server alive?")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @router.get("/health/ready", summary="Is the model ready?", responses=oip_openapi_responses(503))
    async def ready() -> JSONResponse:
        _must_be_ready(service)
        return JSONResponse({"ready": True})

    @router.post("/repository/index", summary="The models, of which there is one", responses=oip_openapi_responses(503))
    async def index() -> JSONResponse:
        return JSONResponse(repository_index(service.model, is_ready=service.is_ready))

    @router.get(
        "/models/stats", summary="Statistics of all models, of which there is one", responses=oip_openapi_responses(503)
    )
    async def stats() -> JSONResponse:
        return JSONResponse(model_statistics(service.model, statistics, service.metrics))

    async def not_offered() -> None:
        raise NotOfferedError("this server does not offer shared memory, trace and log settings, or loading by request")

    for path in NOT_OFFERED:
        router.add_api_route(path, not_offered, methods=["GET", "POST"], include_in_schema=False)


def _add_model_routes(
    router: APIRouter, path: str, service: Service, statistics: Statistics, memory: BodyMemory
) -> None:
    settings = service.settings
    in_path = {"parameters": path_parameters(path)}
    unknown = oip_openapi_responses(404, 503)

    def model_of(request: Request) -> LoadedModel:
        return known_model(service, request.path_params["name"], request.path_params.get("version", ""))

    @router.get(path, summary="Inputs and outputs", openapi_extra=in_path, responses=unknown)
    async def metadata(request: Request) -> JSONResponse:
        return JSONResponse(model_metadata(model_of(request)))

    @router.get(f"{path}/ready", summary="Is the model ready?", openapi_extra=in_path, responses=unknown)
    async def ready(request: Request) -> JSONResponse:
        manifest = model_of(request).bundle.manifest
        _must_be_ready(service)
        return JSONResponse({"name": manifest.name, "ready": True})

    @router.get(f"{path}/config", summary="Configuration", openapi_extra=in_path, responses=unknown)
    async def config(request: Request) -> JSONResponse:
        return JSONResponse(model_config(model_of(request), settings))

    @router.get(f"{path}/stats", summary="Statistics", openapi_extra=in_path, responses=unknown)
    async def stats(request: Request) -> JSONResponse:
        return JSONResponse(model_statistics(model_of(request), statistics, service.metrics))

    @router.post(
        f"{path}/infer",
        summary="Classify images, each at the β of your choice",
        openapi_extra={"parameters": [*path_parameters(path), *infer_parameters()], "requestBody": infer_body()},
        responses={200: infer_response(), **oip_openapi_responses()},
        response_class=Response,
    )
    async def infer_images(request: Request) -> Response:
        model_of(request)
        with statistics.request():
            if (refusal := service.refusal()) is not None:
                raise refusal
            query_beta = _query_beta(request)
            asker = client_identity_of(request)
            body = await receive_body(
                request,
                memory,
                max_bytes=settings.max_request_bytes,
                timeout_ms=settings.timeout_ms,
                too_large=InferRequestTooLargeError(
                    "body", settings.max_request_bytes, "send fewer images in a request"
                ),
                decompresses=True,
            )
            header_length = request.headers.get(HEADER_LENGTH)
            wanted = decode_request(body, header_length, query_beta=query_beta, limits=request_limits(service))
            with service.admit(wanted.images, arrived_s=arrived_s(request.scope)) as admission:
                answer = await cancel_on_disconnect(request, infer(wanted, admission, statistics, asker))
        content, headers = encode_answer(answer, wanted.outputs)
        access_fields(request.scope).update(images=len(wanted.images), **answer.parameters)
        return Response(content, headers=headers)


def _must_be_ready(service: Service) -> None:
    if not service.is_ready:
        raise NotReadyError


def _query_beta(request: Request) -> str | None:
    values: list[tuple[str, Any]] = request.query_params.multi_items()
    if any(name != BETA for name, _ in values):
        raise InvalidRequestError(f"the query may hold {BETA} alone")
    if len(values) > 1:
        raise InvalidRequestError(f"{BETA} is given more than once")
    return values[0][1] if values else None
