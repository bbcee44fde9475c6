"""The response bodies of /classify and /sweep from logits, without a server."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.responses import (
    ClassifyListResponse,
    ClassifyResponse,
    image_problem,
    image_result,
    served_model_fields,
    sweep_response,
    to_json,
)
from serve.control.beta_choice import ActiveSettings, BetaChoice
from serve.errors import InferenceError
from serve.http.problems import INTERNAL_DETAIL
from serve.inference.loaded_model import InferenceResult, row_outputs
from tureen.bundle.manifest import UNCALIBRATED, Temperatures
from tureen.bundle.strength_curve import StrengthCurve
from tureen.errors import TureenError, UndecodableImageError
from tureen.tokens import Mix

LABELS = ["cat", "dog", "owl"]


CURVE = StrengthCurve(betas=[0, 0.5, 1], strengths=[0, 0.2, 1], n=9)
TEMPERATURES = Temperatures(betas=(0, 1), values=(1, 3))


@dataclass
class Manifest:
    name: str = "pets"
    version: str = "7"
    labels: list[str] = field(default_factory=lambda: LABELS)
    strength: StrengthCurve = CURVE


@dataclass
class Model:
    """A model that is also its bundle and its soup: a response reads the manifest and the temperatures only."""

    manifest: Manifest = field(default_factory=Manifest)
    temperatures: Temperatures = UNCALIBRATED

    @property
    def bundle(self):
        return self

    soup = bundle


@dataclass
class Admission:
    """The parts of an admitted request that a response reads."""

    model: Model = field(default_factory=Model)
    active_settings: ActiveSettings = field(default_factory=lambda: ActiveSettings(0.0, "bundle", revision=12))


def logits(*rows):
    return np.array(rows, np.float32)


CALIBRATED = Admission(Model(temperatures=TEMPERATURES))


def test_a_response_names_the_model_its_calibration_and_the_revision_of_the_settings():
    fields = {"model": "pets", "version": "7", "revision": 12, "calibrated": False}
    assert served_model_fields(Admission()) == fields
    assert served_model_fields(CALIBRATED) == {**fields, "calibrated": True}


def result(row, choice, temperatures=UNCALIBRATED):
    """The result of an image with these logits."""
    outputs = row_outputs(logits(row), [0.0 if choice.beta is None else choice.beta], temperatures)
    return InferenceResult(0.0, 0.0, 0.0, 0.0, 0.0, 1, outputs=outputs, pixels=np.zeros((1, 1, 3), np.uint8))


def test_the_bodies_are_those_of_the_schema():
    choice = BetaChoice(0.75, "request", 12)
    fields, image = (
        served_model_fields(CALIBRATED, [choice]),
        image_result(CALIBRATED, result([1, 3, 2], choice), choice, 2),
    )
    single = to_json({**image, **fields})
    assert ClassifyResponse.model_validate_json(single).model_dump_json() == single
    several = to_json({**fields, "results": [image, image_problem(UndecodableImageError("it is cut"))]})
    assert ClassifyListResponse.model_validate_json(several).model_dump_json() == several


def test_the_results_of_an_image_have_the_choice_that_is_a_mix():
    choice = BetaChoice(0.3, "request", 12, Mix((("fog", 0.7), ("robust", 0.3))))
    image = image_result(Admission(), result([1, 3, 2], choice), choice, 1)
    assert (image["strength"], image["mix"]) == (None, {"fog": 0.7, "robust": 0.3})


def test_a_sweep_has_the_temperature_of_each_beta():
    response = sweep_response(CALIBRATED, [0, 1], logits([2, 0, 0], [6, 0, 0]), 1)
    assert response.calibrated
    first, second = response.curves[0].probabilities
    assert first == pytest.approx(second)


@pytest.mark.parametrize(
    ("row", "top_k", "labels"),
    [
        ([1, 3, 2], 3, ["dog", "owl", "cat"]),
        ([1, 3, 2], 1, ["dog"]),
        ([1, 3, 2], 1000, ["dog", "owl", "cat"]),
        ([0, 0, 0], 2, ["cat", "dog"]),  # ties keep the order of the labels
        ([-1e4, 1e4, 0], 3, ["dog", "owl", "cat"]),
    ],
)
def test_an_image_result_holds_the_most_probable_labels_first(row, top_k, labels):
    choice = BetaChoice(0.75, "key", 12)
    image = image_result(Admission(), result(row, choice), choice, top_k)
    assert (image["beta"], image["strength"], image["beta_source"]) == (0.75, 0.6, "key")
    assert [prediction["label"] for prediction in image["predictions"]] == labels
    assert [LABELS[prediction["index"]] for prediction in image["predictions"]] == labels
    probabilities = [prediction["probability"] for prediction in image["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    if len(labels) == len(LABELS):
        assert sum(probabilities) == pytest.approx(1)


def test_the_beta_and_the_strength_of_a_model_of_one_token_are_null():
    choice = BetaChoice(None, "bundle", 0)
    image = image_result(Admission(), result([1, 2, 3], choice), choice, 1)
    assert (image["beta"], image["strength"]) == (None, None)


@pytest.mark.parametrize(
    ("error", "status", "code", "detail"),
    [
        (UndecodableImageError("it is cut"), 400, "undecodable_image", "it is cut"),
        (InferenceError(), 500, "inference_failed", str(InferenceError())),
        (TureenError("a secret of ours"), 500, "internal_error", INTERNAL_DETAIL),
    ],
)
def test_an_image_problem_is_the_row_of_the_table(error, status, code, detail):
    problem = image_problem(error)["problem"]
    assert (problem["status"], problem["code"]) == (status, code)
    assert detail in problem["detail"]
    assert "secret" not in problem["detail"]


def test_a_sweep_has_a_curve_for_each_label_by_its_highest_probability():
    response = sweep_response(Admission(), [0, 0.5, 1], logits([4, 0, 0], [2, 3, 0], [0, 5, 0]), 2)
    assert response.answers == ["cat", "dog", "dog"]
    assert response.strengths == [0, 0.2, 1]
    assert [(curve.label, curve.index) for curve in response.curves] == [("dog", 1), ("cat", 0)]
    for curve in response.curves:
        assert len(curve.probabilities) == 3
    (change,) = response.changes
    assert (change.after_beta, change.before_beta, change.from_label, change.to_label) == (0, 0.5, "cat", "dog")


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ([[1, 0, 0]], []),
        ([[1, 0, 0], [2, 0, 0]], []),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [("cat", "dog"), ("dog", "owl")]),
        ([[1, 0, 0], [0, 1, 0], [1, 0, 0]], [("cat", "dog"), ("dog", "cat")]),
    ],
)
def test_a_sweep_names_every_change_of_the_most_probable_label(rows, changes):
    betas = [index / 10 for index in range(len(rows))]
    response = sweep_response(Admission(), betas, logits(*rows), 5)
    assert [(change.from_label, change.to_label) for change in response.changes] == changes


@given(
    rows=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    top_k=st.integers(1, 5),
)
def test_the_curves_of_a_sweep_hold_the_label_of_every_result_when_all_labels_are_shown(rows, top_k):
    betas = [index / 10 for index in range(len(rows))]
    response = sweep_response(Admission(), betas, logits(*rows), top_k)
    assert len(response.curves) == min(top_k, len(LABELS))
    highest = [max(curve.probabilities) for curve in response.curves]
    assert highest == sorted(highest, reverse=True)
    if top_k >= len(LABELS):
        by_label = {curve.label: curve.probabilities for curve in response.curves}
        for index, label in enumerate(response.answers):
            assert by_label[label][index] == max(probabilities[index] for probabilities in by_label.values())
