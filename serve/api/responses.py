"""What the routes answer, as OpenAPI tells it, and how logits become it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from serve.control.beta_choice import BetaChoice, BetaSource
from serve.http.problems import Problem, problem_of
from serve.inference.service import Admission
from tureen.errors import TureenError
from tureen.soup import Prediction, probabilities, top_predictions


class Served(BaseModel):
    """Which model answered, and under which settings."""

    model: str
    version: str
    revision: int = Field(description="revision of the operator's settings that this request was admitted under")


class Classified(BaseModel):
    """One image's labels."""

    beta: float | None = Field(
        ge=0, le=1, description="β that this image was classified at; null where the model has one token"
    )
    beta_source: BetaSource = Field(
        description="who chose it: this request, a policy it names, its API key, a canary, the operator, or the bundle"
    )
    predictions: list[Prediction] = Field(description="the most probable first")


class ClassifyAnswer(Served, Classified):
    """The answer of /classify to one image."""


class Unclassified(BaseModel):
    """An image among several that could not be classified; the others are unharmed."""

    problem: Problem


class ClassifyAnswers(Served):
    """The answer of /classify to several images, in their order."""

    results: list[Classified | Unclassified]


class Curve(BaseModel):
    """One label's probability at each β."""

    label: str
    index: int
    probabilities: list[float]


class SweepChange(BaseModel):
    """Two neighbouring β with different answers."""

    after_beta: float
    before_beta: float
    from_label: str
    to_label: str


class SweepAnswer(Served):
    """The answer of /sweep: the labels that are among the most probable at some β, the most probable of all first."""

    betas: list[float]
    answers: list[str] = Field(description="the most probable label at each β")
    curves: list[Curve]
    changes: list[SweepChange] = Field(description="where the most probable label changes; empty where it never does")


class ServedFields(TypedDict):
    """The fields of Served."""

    model: str
    version: str
    revision: int


def served(admission: Admission) -> ServedFields:
    """Which model answered the request, and under which settings."""
    manifest = admission.model.bundle.manifest
    return {"model": manifest.name, "version": manifest.version, "revision": admission.active_settings.revision}


def classified(logits: NDArray[np.float32], choice: BetaChoice, labels: Sequence[str], top_k: int) -> Classified:
    """One image's answer from its logits, float32 (K,)."""
    predictions = top_predictions(logits, labels, top_k)
    return Classified(beta=choice.beta, beta_source=choice.source, predictions=predictions)


def unclassified(error: TureenError) -> Unclassified:
    return Unclassified(problem=problem_of(error))


def sweep_answer(admission: Admission, betas: list[float], logits: NDArray[np.float32], top_k: int) -> SweepAnswer:
    """The curves of one image's logits, float32 (len(betas), K)."""
    labels = admission.model.bundle.manifest.labels
    by_beta = probabilities(logits)
    answers = [labels[i] for i in logits.argmax(axis=1)]
    shown = np.argsort(-by_beta.max(axis=0), kind="stable")[:top_k]
    return SweepAnswer(
        **served(admission),
        betas=betas,
        answers=answers,
        curves=[Curve(label=labels[i], index=int(i), probabilities=by_beta[:, i].tolist()) for i in shown],
        changes=[
            SweepChange(after_beta=lower, before_beta=upper, from_label=one, to_label=other)
            for (lower, upper), (one, other) in zip(pairwise(betas), pairwise(answers), strict=True)
            if one != other
        ],
    )
