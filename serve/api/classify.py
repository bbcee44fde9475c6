"""Tureen's own API: /classify and /sweep. From a request to the service and back; what is in between is others'."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel

from serve.api.images import (
    FORM_TYPE,
    JSON_TYPE,
    Images,
    images_of,
    max_body_bytes,
    media_type_of,
)
from serve.api.openapi import _openapi_body, openapi_parameters
from serve.api.query import Parameters, classify_parameters, sweep_parameters
from serve.api.responses import (
    ClassifyAnswer,
    ClassifyAnswers,
    SweepAnswer,
    classified,
    served,
    sweep_answer,
    unclassified,
)
from serve.control.beta_choice import ClientIdentity
from serve.errors import InvalidParameterError, RequestTooLargeError
from serve.http.body_stream import BodyMemory, cancel_on_disconnect, receive_body
from serve.http.client_identity import client_identity_of
from serve.http.direct_route import DirectRoute
from serve.http.problems import openapi_responses
from serve.http.request_log import access_fields, arrived_s
from serve.inference.loaded_model import InferenceResult
from serve.inference.service import Admission, Service
from tureen.errors import SingleTokenError, TureenError

CLASSIFY_TAG = "Classify"


def add_routes(app: FastAPI, service: Service, memory: BodyMemory) -> None:
    """Register both on the application. memory: of all its bodies."""
    router = APIRouter(route_class=DirectRoute, tags=[CLASSIFY_TAG])
    has_two_tokens = service.bundle.manifest.has_two_tokens
    settings = service.settings

    async def receive(request: Request, parameters: Parameters) -> Images:
        """The images of the request, refused before its body is read where they would be afterwards."""
        if (refusal := service.refusal(timeout_ms=parameters.timeout_ms)) is not None:
            raise refusal
        content_type = request.headers.get("content-type", "")
        limits = settings.body_limits
        media_type = media_type_of(content_type)
        body = await receive_body(
            request,
            memory,
            max_bytes=max_body_bytes(media_type, limits),
            timeout_ms=parameters.timeout_ms,
            too_large=RequestTooLargeError(limits.max_request_bytes) if media_type in (FORM_TYPE, JSON_TYPE) else None,
        )
        return images_of(body, content_type, limits)

    @router.post(
        "/classify",
        response_model=ClassifyAnswer | ClassifyAnswers,
        summary="Classify one image, or several, each at the β of your choice",
        responses=openapi_responses(),
        openapi_extra={
            "parameters": openapi_parameters(settings, has_beta=has_two_tokens),
            "requestBody": _openapi_body(several=True),
        },
    )
    async def classify(request: Request) -> Response:
        parameters = classify_parameters(request.query_params, settings)
        asker = client_identity_of(request, parameters.policy)
        images = await receive(request, parameters)
        answer: ClassifyAnswer | ClassifyAnswers
        readable = images.readable() if images.is_list else [images.only()]
        with service.admit(readable, timeout_ms=parameters.timeout_ms, arrived_s=arrived_s(request.scope)) as admission:
            if images.is_list:
                answer, answered = await cancel_on_disconnect(
                    request, _classify_several(admission, images, parameters, asker)
                )
            else:
                choice = admission.choose(_first(images.betas[0], parameters.beta), asker)
                (one,) = await cancel_on_disconnect(request, admission.classify([choice]))
                if isinstance(one, TureenError):
                    raise one
                labels = admission.model.bundle.manifest.labels
                result = classified(one.logits[0], choice, labels, parameters.top_k)
                answer = ClassifyAnswer(
                    **served(admission),
                    beta=result.beta,
                    beta_source=result.beta_source,
                    predictions=result.predictions,
                )
                answered = [one]
                access_fields(request.scope).update(beta=choice.beta, beta_source=choice.source)
        return _response(request, answer, answered)

    @router.post(
        "/sweep",
        response_model=SweepAnswer,
        summary="Classify one image at many β, in one batch: where does its answer change?",
        responses=openapi_responses(),
        openapi_extra={
            "parameters": openapi_parameters(settings, has_betas=True),
            "requestBody": _openapi_body(several=False),
        },
    )
    async def sweep(request: Request) -> Response:
        parameters = sweep_parameters(request.query_params, settings)
        client_identity_of(request)
        images = await receive(request, parameters)
        if len(images.images) != 1 or images.betas != [None]:
            raise InvalidParameterError("a sweep is of one image, and its β are the parameter betas")
        with service.admit(
            [images.only()], len(parameters.betas), parameters.timeout_ms, arrived_s(request.scope)
        ) as admission:
            if not admission.model.bundle.manifest.has_two_tokens:
                raise SingleTokenError
            admission.active_settings.check(parameters.betas)
            one = await cancel_on_disconnect(request, admission.sweep(parameters.betas))
            answer = sweep_answer(admission, parameters.betas, one.logits, parameters.top_k)
        return _response(request, answer, [one])

    app.include_router(router)


async def _classify_several(
    admission: Admission, images: Images, parameters: Parameters, asker: ClientIdentity
) -> tuple[ClassifyAnswers, list[InferenceResult]]:
    choices = [admission.choose(_first(beta, parameters.beta), asker) for beta in images.betas]
    readable = [choice for image, choice in zip(images.images, choices, strict=True) if isinstance(image, bytes)]
    replies_in_order = iter(await admission.classify(readable))
    replies = [next(replies_in_order) if isinstance(image, bytes) else image for image in images.images]
    labels = admission.model.bundle.manifest.labels
    results = [
        unclassified(reply)
        if isinstance(reply, TureenError)
        else classified(reply.logits[0], choice, labels, parameters.top_k)
        for reply, choice in zip(replies, choices, strict=True)
    ]
    answer = ClassifyAnswers(**served(admission), results=results)
    return answer, [reply for reply in replies if isinstance(reply, InferenceResult)]


def _first(own: float | None, of_all: float | None) -> float | None:
    return of_all if own is None else own


def _response(request: Request, answer: BaseModel, answered: list[InferenceResult]) -> Response:
    """The answer, and in Server-Timing what its slowest image spent in each stage."""
    stages = {
        stage: round(1000 * max((getattr(one, f"{stage}_s") for one in answered), default=0.0), 3)
        for stage in ("decode", "queue", "inference")
    }
    access_fields(request.scope).update(stages)
    return Response(
        answer.model_dump_json(),
        media_type="application/json",
        headers={"Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in stages.items())},
    )
