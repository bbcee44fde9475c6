"""Tureen's own API: /classify and /sweep. From a request to the service and back; what is in between is others'."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from serve.api.images import (
    BETA_FIELD,
    FORM_TYPE,
    IMAGE_FIELD,
    IMAGE_TYPES,
    JSON_TYPE,
    Images,
    images_of,
    max_body_bytes,
    media_type_of,
)
from serve.api.query import Parameters, classify_parameters, openapi_parameters, sweep_parameters
from serve.api.responses import (
    ClassifyAnswer,
    ClassifyAnswers,
    SweepAnswer,
    classified,
    served,
    sweep_answer,
    unclassified,
)
from serve.control.beta_choice import Asker
from serve.errors import InvalidParameterError, RequestTooLargeError
from serve.http.body_stream import BodyMemory, receive_body, unless_gone
from serve.http.problems import openapi_responses
from serve.http.request_log import access_fields, arrived_s, only_value
from serve.inference.loaded_model import Answered
from serve.inference.service import Admission, Service
from tureen.errors import SingleTokenError, TureenError
from tureen.tokens import MODE_BETAS

CLASSIFY_TAG = "Classify"
BINARY = {"schema": {"type": "string", "format": "binary"}}


class DirectRoute(APIRoute):
    """Calls its endpoint with the request and nothing else.

    What FastAPI could do with parameters and bodies is done elsewhere here, and its way there costs every request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)


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
        asker = asker_of(request, parameters.policy)
        images = await receive(request, parameters)
        answer: ClassifyAnswer | ClassifyAnswers
        readable = images.readable() if images.is_list else [images.only()]
        with service.admit(readable, timeout_ms=parameters.timeout_ms, arrived_s=arrived_s(request.scope)) as admission:
            if images.is_list:
                answer, answered = await unless_gone(request, _classify_several(admission, images, parameters, asker))
            else:
                choice = admission.choose(_first(images.betas[0], parameters.beta), asker)
                one = await unless_gone(request, admission.classify(choice))
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
        asker_of(request)
        images = await receive(request, parameters)
        if len(images.images) != 1 or images.betas != [None]:
            raise InvalidParameterError("a sweep is of one image, and its β are the parameter betas")
        with service.admit(
            [images.only()], len(parameters.betas), parameters.timeout_ms, arrived_s(request.scope)
        ) as admission:
            if not admission.model.bundle.manifest.has_two_tokens:
                raise SingleTokenError
            admission.in_force.check(parameters.betas)
            (one,) = await unless_gone(request, admission.answer([tuple(parameters.betas)]))
            if isinstance(one, TureenError):
                raise one
            answer = sweep_answer(admission, parameters.betas, one.logits, parameters.top_k)
        return _response(request, answer, [one])

    app.include_router(router)


def answer_head(router: APIRouter) -> None:
    """HEAD wherever GET is answered, as load balancers and uptime checks ask; uvicorn keeps the body back.

    To be called before the router is included: FastAPI does not list the routes of an included one.
    """
    for route in list(router.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            router.add_api_route(
                route.path.removeprefix(router.prefix),
                route.endpoint,
                methods=["HEAD"],
                include_in_schema=False,
                response_class=route.response_class,
            )


async def _classify_several(
    admission: Admission, images: Images, parameters: Parameters, asker: Asker
) -> tuple[ClassifyAnswers, list[Answered]]:
    choices = [admission.choose(_first(beta, parameters.beta), asker) for beta in images.betas]
    readable = [choice for image, choice in zip(images.images, choices, strict=True) if isinstance(image, bytes)]
    replies_in_order = iter(await admission.classify_all(readable))
    replies = [next(replies_in_order) if isinstance(image, bytes) else image for image in images.images]
    labels = admission.model.bundle.manifest.labels
    results = [
        unclassified(reply)
        if isinstance(reply, TureenError)
        else classified(reply.logits[0], choice, labels, parameters.top_k)
        for reply, choice in zip(replies, choices, strict=True)
    ]
    answer = ClassifyAnswers(**served(admission), results=results)
    return answer, [reply for reply in replies if isinstance(reply, Answered)]


def asker_of(request: Request, policy: str | None = None) -> Asker:
    """What the request says of itself: its policy, its API key, and what keeps it on one side of a canary.

    Raises MalformedRequestError.
    """
    api_key = only_value("X-API-Key", request.headers.getlist("x-api-key"))
    request_key = only_value("X-Request-Key", request.headers.getlist("x-request-key"))
    address = request.client.host if request.client is not None else ""
    return Asker(policy, api_key, request_key or api_key or address)


def _first(own: float | None, of_all: float | None) -> float | None:
    return of_all if own is None else own


def _response(request: Request, answer: BaseModel, answered: list[Answered]) -> Response:
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


def _openapi_body(*, several: bool) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form: dict[str, Any] = {
        "schema": {
            "type": "object",
            "properties": {IMAGE_FIELD: file},
            "required": [IMAGE_FIELD],
            "additionalProperties": False,
        }
    }
    beta = {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "enum": sorted(MODE_BETAS)},
            {"type": "null"},
        ]
    }
    image: dict[str, Any] = {
        "type": "object",
        "properties": {"data": {"type": "string", "description": "base64, or a data: URL of it"}},
        "required": ["data"],
        "additionalProperties": False,
    }
    if several:
        image["properties"]["beta"] = beta
    images = {"type": "array", "items": image, "minItems": 1, **({} if several else {"maxItems": 1})}
    listed = {
        "schema": {
            "type": "object",
            "properties": {"images": images},
            "required": ["images"],
            "additionalProperties": False,
        }
    }
    if several:
        one = {"type": "string", "description": "a number, clean or robust"}
        form["schema"]["properties"] = {
            name: {"anyOf": [part, {"type": "array", "items": part}]}  # of a form one part is a list of one
            for name, part in ((IMAGE_FIELD, file), (BETA_FIELD, one))
        }
    content = {**dict.fromkeys(sorted(IMAGE_TYPES), BINARY), FORM_TYPE: form, JSON_TYPE: listed}
    return {"required": True, "content": content}
