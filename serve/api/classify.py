"""The routes /classify and /sweep. They parse the request, call the service and build the response.

/classify classifies one image or several, each at one β. /sweep classifies one image at many β.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from serve.api.images import FORM_TYPE, JSON_TYPE, RequestImages, max_body_bytes, parse_images, parse_media_type
from serve.api.openapi import query_parameters, request_body
from serve.api.query import QueryCache, QueryParameters, classify_parameters, sweep_parameters
from serve.api.responses import (
    ClassifyListResponse,
    ClassifyResponse,
    SweepResponse,
    image_problem,
    image_result,
    served_model_fields,
    sweep_response,
    to_json,
)
from serve.control.beta_choice import ClientIdentity
from serve.errors import InvalidParameterError, RequestTooLargeError
from serve.http.body_stream import BodyMemory, cancel_on_disconnect, receive_body
from serve.http.client_identity import client_identity_of
from serve.http.direct_route import DirectRoute
from serve.http.problems import openapi_responses
from serve.http.request_log import access_fields, arrived_s
from serve.inference.admitted_request import Admission
from serve.inference.loaded_model import InferenceResult
from serve.inference.service import Service
from tureen.errors import SingleTokenError, TureenError
from tureen.tokens import GivenChoice

CLASSIFY_TAG = "Classify"


def add_classify_routes(app: FastAPI, service: Service, memory: BodyMemory) -> APIRouter:
    """Registers POST /classify and POST /sweep, and returns their router.

    memory: limits the bodies of all routes of the application.
    """
    router = APIRouter(route_class=DirectRoute, tags=[CLASSIFY_TAG])
    has_two_tokens = service.bundle.manifest.has_two_tokens
    settings = service.settings
    classify_queries, sweep_queries = QueryCache(classify_parameters, settings), QueryCache(sweep_parameters, settings)

    async def receive_images(request: Request, parameters: QueryParameters) -> RequestImages:
        """Receives the body of the request, and returns its images.

        Raises the error of `Service.refusal`, before it reads the body, if the service cannot admit a request now.
        Raises the errors of `receive_body` and `parse_images`.
        """
        if (refusal := service.refusal(timeout_ms=parameters.timeout_ms)) is not None:
            raise refusal
        content_type = request.headers.get("content-type", "")
        limits = settings.body_limits
        media_type = parse_media_type(content_type)
        body = await receive_body(
            request,
            memory,
            max_bytes=max_body_bytes(media_type, limits),
            timeout_ms=parameters.timeout_ms,
            too_large=RequestTooLargeError(limits.max_request_bytes) if media_type in (FORM_TYPE, JSON_TYPE) else None,
        )
        return parse_images(body, content_type, limits)

    @router.post(
        "/classify",
        response_model=ClassifyResponse | ClassifyListResponse,
        summary="Classify one image or several, each at its own β or mix of tokens",
        responses=openapi_responses(),
        openapi_extra={
            "parameters": query_parameters(settings, has_beta=has_two_tokens),
            "requestBody": request_body(several=True),
        },
    )
    async def classify(request: Request) -> Response:
        parameters = classify_queries.parse(request.scope["query_string"])
        client = client_identity_of(request, parameters.policy)
        images = await receive_images(request, parameters)
        readable = images.readable() if images.is_list else [images.single()]
        body: dict[str, Any]
        with service.admit(readable, timeout_ms=parameters.timeout_ms, arrived_s=arrived_s(request.scope)) as admission:
            if images.is_list:
                body, results = await cancel_on_disconnect(
                    request, _classify_list(admission, images, parameters, client)
                )
            else:
                choice = admission.choose(_first_given(images.choices[0], parameters.choice), client)
                (result,) = await cancel_on_disconnect(request, admission.classify([choice]))
                if isinstance(result, TureenError):
                    raise result
                body = {
                    **image_result(admission, result, choice, parameters.top_k),
                    **served_model_fields(admission, [choice]),
                }
                results = [result]
                access_fields(request.scope).update(beta=choice.beta, beta_source=choice.source)
                if choice.mix is not None:
                    access_fields(request.scope).update(mix=dict(choice.mix.weights))
        return _response(request, to_json(body), results)

    @router.post(
        "/sweep",
        response_model=SweepResponse,
        summary="Classify one image at many β in one batch, to see where the label changes",
        responses=openapi_responses(),
        openapi_extra={
            "parameters": query_parameters(settings, has_betas=True),
            "requestBody": request_body(several=False),
        },
    )
    async def sweep(request: Request) -> Response:
        parameters = sweep_queries.parse(request.scope["query_string"])
        client = client_identity_of(request)
        images = await receive_images(request, parameters)
        if len(images.images) != 1 or images.choices != [None]:
            raise InvalidParameterError("a sweep takes one image, and its β in the query parameter betas or strengths")
        with service.admit(
            [images.single()], len(parameters.betas), parameters.timeout_ms, arrived_s(request.scope)
        ) as admission:
            if not admission.model.bundle.manifest.has_two_tokens:
                raise SingleTokenError
            betas = [admission.beta_of(beta) for beta in parameters.betas]
            admission.active_settings.check(betas, client)
            result = await cancel_on_disconnect(request, admission.sweep(betas))
            body = sweep_response(admission, betas, result.logits, parameters.top_k)
        return _response(request, body.model_dump_json(), [result])

    app.include_router(router)
    return router


async def _classify_list(
    admission: Admission, images: RequestImages, parameters: QueryParameters, client: ClientIdentity
) -> tuple[dict[str, Any], list[InferenceResult]]:
    """Classifies several images. Returns a ClassifyListResponse, and the results of the images that did not fail."""
    choices = [admission.choose(_first_given(choice, parameters.choice), client) for choice in images.choices]
    readable = [choice for image, choice in zip(images.images, choices, strict=True) if isinstance(image, bytes)]
    results = iter(await admission.classify(readable))
    outcomes = [next(results) if isinstance(image, bytes) else image for image in images.images]
    entries = [
        image_result(admission, outcome, choice, parameters.top_k)
        if isinstance(outcome, InferenceResult)
        else image_problem(outcome)
        for outcome, choice in zip(outcomes, choices, strict=True)
    ]
    response = {**served_model_fields(admission, choices), "results": entries}
    return response, [outcome for outcome in outcomes if isinstance(outcome, InferenceResult)]


def _first_given(of_image: GivenChoice | None, of_query: GivenChoice | None) -> GivenChoice | None:
    return of_query if of_image is None else of_image


def _response(request: Request, body: str, results: Sequence[InferenceResult]) -> Response:
    """Returns the HTTP response. body: JSON. results: of the classified images.

    The header Server-Timing has, for each stage (decode, queue, inference), the longest time of any image in
    milliseconds. The log event of the request has these times too.
    """
    stages = {
        stage: round(1000 * max((getattr(result, f"{stage}_s") for result in results), default=0.0), 3)
        for stage in ("decode", "queue", "inference")
    }
    access_fields(request.scope).update(stages)
    return Response(
        body,
        media_type="application/json",
        headers={"Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in stages.items())},
    )
