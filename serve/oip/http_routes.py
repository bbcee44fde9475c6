"""The HTTP routes of the Open Inference Protocol, under /v2.

`serve.oip.codec` decodes the bodies, and `serve.oip.request` validates the requests.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serve.errors import InferRequestTooLargeError, InvalidRequestError, NotOfferedError, NotReadyError
from serve.http.body_stream import BodyMemory, cancel_on_disconnect, receive_body
from serve.http.client_identity import client_identity_of
from serve.http.direct_route import DirectRoute, add_head_routes
from serve.http.problems import OIP_PREFIX, oip_openapi_responses
from serve.http.request_log import access_fields, arrived_s
from serve.inference.loaded_model import LoadedModel
from serve.inference.service import Service
from serve.oip.codec import HEADER_LENGTH, decode_request, encode_response
from serve.oip.infer import infer, request_limits
from serve.oip.metadata import (
    find_model,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from serve.oip.openapi_operations import TAG, infer_body, infer_parameters, infer_response, path_parameters
from serve.oip.request import BETA, STRENGTH
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


def add_oip_routes(app: FastAPI, service: Service, memory: BodyMemory) -> APIRouter:
    """Registers every HTTP route of the Open Inference Protocol, and returns their router.

    The routes of a model exist with and without a version in the path. Stores the counters of requests, a `Statistics`,
    in app.state.statistics, so that the gRPC server can share them. memory: limits the bodies of all routes of the
    application together.
    """
    app.state.statistics = statistics = Statistics()
    router = APIRouter(prefix=OIP_PREFIX, tags=[TAG])
    _add_server_routes(router, service, statistics)
    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model_routes(router, path, service, statistics, memory)
    add_head_routes(router)
    app.include_router(router)
    return router


def _add_server_routes(router: APIRouter, service: Service, statistics: Statistics) -> None:
    @router.get("", summary="Name, version and extensions of the server")
    async def metadata() -> JSONResponse:
        return JSONResponse(server_metadata())

    # The client of kserve reads these bodies. tritonclient reads only the status.
    @router.get("/health/live", summary="Is the server alive?")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @router.get("/health/ready", summary="Is the model ready?", responses=oip_openapi_responses(503))
    async def ready() -> JSONResponse:
        _require_ready(service)
        return JSONResponse({"ready": True})

    @router.post("/repository/index", summary="Index of the models", responses=oip_openapi_responses(503))
    async def index() -> JSONResponse:
        return JSONResponse(repository_index(service.model, is_ready=service.is_ready))

    @router.get("/models/stats", summary="Statistics of all models", responses=oip_openapi_responses(503))
    async def stats() -> JSONResponse:
        return JSONResponse(model_statistics(service.model, statistics, service.metrics))

    async def not_offered() -> None:
        raise NotOfferedError("shared memory, trace and log settings, and loading models by request are not supported")

    for path in NOT_OFFERED:
        router.add_api_route(path, not_offered, methods=["GET", "POST"], include_in_schema=False)


def _add_model_routes(
    router: APIRouter, path: str, service: Service, statistics: Statistics, memory: BodyMemory
) -> None:
    settings = service.settings
    in_path = {"parameters": path_parameters(path)}
    unknown = oip_openapi_responses(404, 503)

    def model_of(request: Request) -> LoadedModel:
        return find_model(service, request.path_params["name"], request.path_params.get("version", ""))

    @router.get(path, summary="Inputs and outputs of the model", openapi_extra=in_path, responses=unknown)
    async def metadata(request: Request) -> JSONResponse:
        return JSONResponse(model_metadata(model_of(request)))

    @router.get(f"{path}/ready", summary="Is the model ready?", openapi_extra=in_path, responses=unknown)
    async def ready(request: Request) -> JSONResponse:
        manifest = model_of(request).bundle.manifest
        _require_ready(service)
        return JSONResponse({"name": manifest.name, "ready": True})

    @router.get(f"{path}/config", summary="Configuration of the model", openapi_extra=in_path, responses=unknown)
    async def config(request: Request) -> JSONResponse:
        return JSONResponse(model_config(model_of(request), settings))

    @router.get(f"{path}/stats", summary="Statistics of the model", openapi_extra=in_path, responses=unknown)
    async def stats(request: Request) -> JSONResponse:
        return JSONResponse(model_statistics(model_of(request), statistics, service.metrics))

    async def infer_images(request: Request) -> Response:
        model_of(request)
        with statistics.request():
            if (refusal := service.refusal()) is not None:
                raise refusal
            query = _query(request)
            client = client_identity_of(request)
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
            inference = decode_request(body, header_length, query=query, limits=request_limits(service))
            with service.admit(inference.images, arrived_s=arrived_s(request.scope)) as admission:
                response = await cancel_on_disconnect(request, infer(inference, admission, statistics, client))
        content, headers = encode_response(response, inference.outputs)
        access_fields(request.scope).update(images=len(inference.images), **response.parameters)
        return Response(content, headers=headers)

    router.add_api_route(
        f"{path}/infer",
        infer_images,
        methods=["POST"],
        summary="Classify images, each at its own β",
        openapi_extra={"parameters": [*path_parameters(path), *infer_parameters()], "requestBody": infer_body()},
        responses={200: infer_response(), **oip_openapi_responses()},
        response_class=Response,
        route_class_override=DirectRoute,
    )


def _require_ready(service: Service) -> None:
    if not service.is_ready:
        raise NotReadyError


def _query(request: Request) -> dict[str, str]:
    """Returns the query parameter beta or strength by its name; empty if there is neither.

    Raises InvalidRequestError if the query has another parameter, or more than one.
    """
    values = request.query_params.multi_items()
    if any(name not in (BETA, STRENGTH) for name, _ in values):
        raise InvalidRequestError(f"the query has an unknown parameter: use only {BETA} or {STRENGTH}")
    if len(values) > 1:
        raise InvalidRequestError(f"the query has {BETA} or {STRENGTH} more than once, or both: give one of them")
    return dict(values)
