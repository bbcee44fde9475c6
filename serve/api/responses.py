"""Defines the response bodies of /classify and /sweep, also for OpenAPI, and builds them from the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from serve.control.beta_choice import BetaChoice, BetaSource, is_calibrated
from serve.http.problems import Problem, problem_of
from serve.inference.admitted_request import Admission
from serve.inference.loaded_model import InferenceResult
from tureen.errors import TureenError
from tureen.interface.predictions import Prediction
from tureen.soup import sweep_result

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Writes a response body as JSON text."""


class ServedModel(BaseModel):
    """The model that classified the images, and the revision of the settings under which the request was admitted."""

    model: str  # name in the bundle's manifest
    version: str  # version in the manifest
    revision: int = Field(description="revision of the operator's settings when the server admitted the request")
    calibrated: bool = Field(
        description="whether the probabilities have a fitted temperature; false if an image has a mix"
    )


class ImageResult(BaseModel):
    """The predictions for one image, the β or the mix at which it was classified, and the source of this choice."""

    beta: float | None = Field(
        ge=0,
        le=1,
        description="β of this image; of a mix, the share of the robust token; null if the model has one token",
    )
    strength: float | None = Field(
        ge=0, le=1, description="strength of this β; null for a mix, or if the model has one token"
    )
    mix: dict[str, float] | None = Field(default=None, description="weight of each token; null without a mix")
    beta_source: BetaSource = Field(
        description="source of β: the request, its policy, its API key, a canary, the operator's default, or the bundle"
    )
    predictions: list[Prediction] = Field(description="in descending order of probability")


class ClassifyResponse(ServedModel, ImageResult):
    """The response of /classify to one image."""


class ImageProblem(BaseModel):
    """The error of one image, in place of a result, in the response to several images."""

    problem: Problem


class ClassifyListResponse(ServedModel):
    """The response of /classify to several images. results: one for each image, in the order of the request."""

    results: list[ImageResult | ImageProblem]


class Curve(BaseModel):
    """The probability of one label at each β of a sweep.

    index: of the label in the model's list of labels. probabilities: in [0, 1], in the order of the β.
    """

    label: str
    index: int
    probabilities: list[float]


class SweepChange(BaseModel):
    """A change of the most probable label between two neighbouring β of a sweep.

    from_label is the most probable label at after_beta, the lower β, and to_label that at before_beta, the higher β.
    """

    after_beta: float
    before_beta: float
    from_label: str
    to_label: str


class SweepResponse(ServedModel):
    """The response of /sweep: the probabilities of one image's labels at many β.

    curves: of the top_k labels that have the highest probabilities at any β, the highest first.
    """

    betas: list[float]
    strengths: list[float] = Field(description="the strength of each β")
    answers: list[str] = Field(description="the most probable label at each β")
    curves: list[Curve]
    changes: list[SweepChange] = Field(description="where the most probable label changes; empty if it never does")


class ServedModelFields(TypedDict):
    """The fields of ServedModel as a dictionary, which is passed as keyword arguments to its subclasses."""

    model: str
    version: str
    revision: int
    calibrated: bool


def served_model_fields(admission: Admission, choices: Sequence[BetaChoice] = ()) -> ServedModelFields:
    """Returns the fields of ServedModel for an admitted request.

    choices: of its images; they decide the field `calibrated`. Empty for a sweep, which has β alone.
    """
    manifest = admission.model.bundle.manifest
    return {
        "model": manifest.name,
        "version": manifest.version,
        "revision": admission.active_settings.revision,
        "calibrated": is_calibrated(choices, admission.model.soup.temperatures),
    }


def image_result(admission: Admission, result: InferenceResult, choice: BetaChoice, top_k: int) -> dict[str, Any]:
    """Returns an ImageResult as a dictionary: the choice of the image, and its top_k most probable labels.

    A dictionary costs less than the model, and `to_json` writes it.
    """
    manifest, (output,) = admission.model.bundle.manifest, result.outputs
    best = output.order[:top_k]
    return {
        "beta": choice.beta,
        "strength": None
        if choice.beta is None or choice.mix is not None
        else manifest.strength.strength_at(choice.beta),
        "mix": None if choice.mix is None else dict(choice.mix.weights),
        "beta_source": choice.source,
        "predictions": [
            {"label": manifest.labels[index], "index": index, "probability": probability}
            for index, probability in zip(best.tolist(), output.probabilities[best].tolist(), strict=True)
        ],
    }


def image_problem(error: TureenError) -> dict[str, Any]:
    """Returns an ImageProblem as a dictionary: the entry for an image that failed. error: of the image."""
    return {"problem": problem_of(error).model_dump()}


def sweep_response(admission: Admission, betas: list[float], logits: NDArray[np.float32], top_k: int) -> SweepResponse:
    """Returns the response of /sweep for one image, with the curves of top_k labels.

    betas: ascending. logits: of the image at each β, float32 (number of β, number of labels).
    """
    model = admission.model
    sweep = sweep_result(model.bundle.manifest, model.soup.temperatures, betas, logits, top_k)
    return SweepResponse.model_validate({**sweep.model_dump(), **served_model_fields(admission)})
