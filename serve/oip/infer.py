"""One understood request, answered: the images through the service, the logits into the outputs that were asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serve.control.beta_choice import ANONYMOUS, BetaChoice, ClientIdentity
from serve.errors import DeadlineError, InvalidRequestError
from serve.inference.loaded_model import InferenceResult
from serve.inference.service import Admission, Service
from serve.oip.codec import InferAnswer
from serve.oip.request import LOGITS, InferRequest, RequestLimits, WantedOutput
from serve.oip.statistics import Statistics
from serve.oip.tensors import BYTES, Tensor
from tureen.errors import ImageError, TureenError
from tureen.soup import probabilities


def request_limits(service: Service) -> RequestLimits:
    """What a request may hold, as the model and the settings have it."""
    image_size = service.model.bundle.manifest.preprocess.image_size
    return RequestLimits(image_size, service.settings.max_images_per_request)


async def infer(
    request: InferRequest, admission: Admission, statistics: Statistics, asker: ClientIdentity = ANONYMOUS
) -> InferAnswer:
    """The answer to all images of the request, or one error for all: a tensor has no place for a row that failed.

    Raises TureenError. A `timeout` beyond the admission's deadline does not extend it.
    """
    asker = replace(asker, policy=request.policy)
    choices = [admission.choose(beta, asker) for beta in request.betas]
    answers = await _answers(request, choices, admission)
    for index, answer in enumerate(answers):
        if isinstance(answer, ImageError) and len(answers) > 1:
            raise InvalidRequestError(f"image {index}: {answer}") from answer
        if isinstance(answer, TureenError):
            raise answer
    answered = [answer for answer in answers if isinstance(answer, InferenceResult)]
    started = time.perf_counter()
    manifest = admission.model.bundle.manifest
    logits = np.concatenate([answer.logits for answer in answered])
    outputs = tuple(_output(output, logits, manifest.labels) for output in request.outputs)
    statistics.inferred(
        images=len(answered),
        decode_s=max(answer.decode_s for answer in answered),
        queue_s=max(answer.queue_s for answer in answered),
        inference_s=max(answer.inference_s for answer in answered),
        output_s=time.perf_counter() - started,
    )
    return InferAnswer(manifest.name, manifest.version, request.id, _told(choices), outputs)


async def _answers(
    request: InferRequest, choices: Sequence[BetaChoice], admission: Admission
) -> Sequence[InferenceResult | TureenError]:
    if request.timeout_us is None:
        return await admission.classify(choices)
    try:
        async with asyncio.timeout(request.timeout_us / 1e6):
            return await admission.classify(choices)
    except TimeoutError:
        raise DeadlineError from None


def _told(choices: Sequence[BetaChoice]) -> dict[str, float | int | str]:
    """The effective β, a number where all images have one and else a list as text; whose choice, at what revision."""
    told: dict[str, float | int | str] = {"beta_source": choices[0].source, "revision": choices[0].revision}
    betas = [choice.beta for choice in choices if choice.beta is not None]
    if not betas:  # the model has one token
        return told
    return {"beta": betas[0] if len(set(betas)) == 1 else ",".join(map(str, betas)), **told}


def _output(wanted: WantedOutput, logits: NDArray[np.float32], labels: Sequence[str]) -> Tensor:
    """logits: (B, K)."""
    values = logits if wanted.name == LOGITS else probabilities(logits).astype(np.float32)
    if not wanted.classification:
        return Tensor(wanted.name, "FP32", values.shape, values)
    count = min(wanted.classification, len(labels))
    # By the logits, ties in the order of the labels: the same labels as /classify tells, whichever output is asked for.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    told = [
        f"{row[index]:.6f}:{index}:{labels[index]}".encode()
        for row, indices in zip(values, best, strict=True)
        for index in indices
    ]
    return Tensor(wanted.name, BYTES, (len(values), count), told)
