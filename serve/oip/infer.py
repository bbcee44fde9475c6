"""Runs one inference request: classifies its images and converts the logits into the requested outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve.control.beta_choice import BetaChoice, ClientIdentity, is_calibrated
from serve.errors import DeadlineError, InvalidRequestError
from serve.inference.admitted_request import Admission
from serve.inference.loaded_model import InferenceResult, RowOutput
from serve.inference.service import Service
from serve.oip.codec import InferResponse
from serve.oip.request import LOGITS, InferRequest, RequestedOutput, RequestLimits
from serve.oip.statistics import Statistics
from serve.oip.tensors import BYTES, Tensor
from tureen.bundle.manifest import Manifest
from tureen.errors import ImageError, TureenError


def request_limits(service: Service) -> RequestLimits:
    """Returns the limits of an inference request to the current model. Raises NotReadyError if no model is loaded."""
    image_size = service.model.bundle.manifest.preprocess.image_size
    return RequestLimits(image_size, service.settings.max_images_per_request)


async def infer(
    request: InferRequest, admission: Admission, statistics: Statistics, client: ClientIdentity
) -> InferResponse:
    """Classifies all images of the request, and returns the response. Adds the times to `statistics`.

    If an image fails, raises the error of the first such image, because a tensor cannot hold an error for one row. In a
    request of several images, an ImageError becomes an InvalidRequestError that names the image. Raises the errors of
    `Admission.choose`. Raises DeadlineError after the deadline of the admission, or after the timeout of the request if
    that ends earlier.
    """
    client = replace(client, policy=request.policy)
    choices = [admission.choose(choice, client) for choice in request.choices]
    outcomes = await _classify(request, choices, admission)
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError) and len(outcomes) > 1:
            raise InvalidRequestError(f"image {index}: {outcome}") from outcome
        if isinstance(outcome, TureenError):
            raise outcome
    results = [outcome for outcome in outcomes if isinstance(outcome, InferenceResult)]
    started = time.perf_counter()
    manifest = admission.model.bundle.manifest
    rows = [output for result in results for output in result.outputs]
    outputs = tuple(_output(output, rows, manifest.labels) for output in request.outputs)
    statistics.add(
        images=len(results),
        decode_s=max(result.decode_s for result in results),
        queue_s=max(result.queue_s for result in results),
        inference_s=max(result.inference_s for result in results),
        output_s=time.perf_counter() - started,
    )
    calibrated = is_calibrated(choices, admission.model.soup.temperatures)
    parameters = {**_response_parameters(choices, manifest), "calibrated": calibrated}
    return InferResponse(manifest.name, manifest.version, request.id, parameters, outputs)


async def _classify(
    request: InferRequest, choices: Sequence[BetaChoice], admission: Admission
) -> Sequence[InferenceResult | TureenError]:
    if request.timeout_us is None:
        return await admission.classify(choices)
    try:
        async with asyncio.timeout(request.timeout_us / 1e6):
            return await admission.classify(choices)
    except TimeoutError:
        raise DeadlineError from None


def _response_parameters(choices: Sequence[BetaChoice], manifest: Manifest) -> dict[str, float | int | str]:
    """Returns the parameters of a response: beta_source, revision, beta and strength.

    beta and strength are numbers if all images have the same β, else comma-separated lists with a value for each image.
    For a model with one token there is neither, and no strength if an image has a mix. mix is the text of the mixes, as
    in a request, separated by semicolons, with an empty text for an image without a mix.
    """
    parameters: dict[str, float | int | str] = {"beta_source": choices[0].source, "revision": choices[0].revision}
    mixes = ["" if choice.mix is None else str(choice.mix) for choice in choices]
    if any(mixes):
        parameters["mix"] = mixes[0] if len(set(mixes)) == 1 else ";".join(mixes)
    betas = [choice.beta for choice in choices if choice.beta is not None]
    if not betas:  # the model has one token
        return parameters
    if any(mixes):
        return {"beta": betas[0] if len(set(betas)) == 1 else ",".join(map(str, betas)), **parameters}
    strengths = [manifest.strength.strength_at(beta) for beta in betas]
    if len(set(betas)) == 1:
        return {"beta": betas[0], "strength": strengths[0], **parameters}
    return {"beta": ",".join(map(str, betas)), "strength": ",".join(map(str, strengths)), **parameters}


def _output(requested: RequestedOutput, rows: Sequence[RowOutput], labels: Sequence[str]) -> Tensor:
    """Returns the tensor of one requested output: FP32 (B, K), or BYTES (B, N) if the request asks for N labels.

    rows: B, one for each image. An element of BYTES is the text `VALUE:INDEX:LABEL`.
    """
    is_logits = requested.name == LOGITS
    values = np.array([row.logits if is_logits else row.probabilities for row in rows], np.float32)
    if not requested.classification:
        return Tensor(requested.name, "FP32", values.shape, values)
    count = min(requested.classification, len(labels))
    # The same order for each output, which is that of /classify.
    elements = [
        f"{row_values[index]:.6f}:{index}:{labels[index]}".encode()
        for row_values, row in zip(values, rows, strict=True)
        for index in row.order[:count]
    ]
    return Tensor(requested.name, BYTES, (len(values), count), elements)
