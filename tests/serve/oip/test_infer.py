"""One inference request from its images to its outputs, with a service that returns known logits."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from serve.control.beta_choice import ActiveSettings, ClientIdentity
from serve.control.settings_state import SettingsState
from serve.errors import DeadlineError, InferenceError, InvalidRequestError
from serve.inference.loaded_model import InferenceResult, row_outputs
from serve.oip.infer import infer
from serve.oip.request import InferRequest, RequestedOutput
from serve.oip.statistics import Statistics
from tureen.bundle.manifest import UNCALIBRATED, Temperatures
from tureen.bundle.strength_curve import StrengthCurve
from tureen.errors import UndecodableImageError

LOGITS = RequestedOutput("logits")


CURVE = StrengthCurve(betas=[0, 0.5, 1], strengths=[0, 0.2, 1], n=9)


@dataclass
class Manifest:
    name: str = "pets"
    version: str = "7"
    labels: tuple[str, ...] = ("cat", "dog", "owl")
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


class Admission:
    """An admitted request whose images have these results or errors, one for each image."""

    def __init__(self, *outcomes, settings=None, temperatures=UNCALIBRATED):
        self.model = Model(temperatures=temperatures)
        self.outcomes = outcomes
        self.choices = []
        self._settings = settings or ActiveSettings(0.3, "bundle", revision=12)

    def choose(self, beta, client):
        return self._settings.choose(beta, client)

    async def classify(self, choices):
        self.choices = choices
        if not self.outcomes:
            await asyncio.Event().wait()
        return list(self.outcomes)


def result(*logits, beta=0.0, temperatures=UNCALIBRATED, decode_s=0.0, queue_s=0.0, inference_s=0.0):
    return InferenceResult(
        outputs=row_outputs(np.array([logits], np.float32), [beta], temperatures),
        pixels=np.zeros((4, 4, 3), np.uint8),
        decode_began_s=0.0,
        decode_s=decode_s,
        queue_s=queue_s,
        batch_began_s=0.0,
        inference_s=inference_s,
        batch_size=1,
    )


def request(*betas, outputs=(LOGITS,), timeout_us=None, policy=None):
    return InferRequest("order-66", (b"image",) * len(betas), betas, outputs, timeout_us, policy)


def run(inference, admission, statistics=None):
    return asyncio.run(infer(inference, admission, statistics or Statistics(), ClientIdentity()))


def test_the_response_names_the_model_the_request_and_its_beta():
    response = run(request(0.75), Admission(result(1, 2, 3)))
    assert (response.model_name, response.model_version, response.id) == ("pets", "7", "order-66")
    assert response.parameters == {
        "beta": 0.75,
        "strength": 0.6,
        "beta_source": "request",
        "revision": 12,
        "calibrated": False,
    }


@pytest.mark.parametrize(
    ("betas", "settings", "parameters"),
    [
        ((None, None), None, {"beta": 0.3, "strength": 0.12, "beta_source": "bundle", "revision": 12}),
        ((0.5, 0.5), None, {"beta": 0.5, "strength": 0.2, "beta_source": "request", "revision": 12}),
        ((0.0, 1.0), None, {"beta": "0.0,1.0", "strength": "0.0,1.0", "beta_source": "request", "revision": 12}),
        ((None,), ActiveSettings(None, "bundle"), {"beta_source": "bundle", "revision": 0}),  # a model of one token
    ],
)
def test_beta_is_a_number_if_all_images_have_the_same_and_else_a_list(betas, settings, parameters):
    admission = Admission(*[result(1, 2, 3) for _ in betas], settings=settings)
    assert run(request(*betas), admission).parameters == {**parameters, "calibrated": False}


def test_the_policy_of_the_request_is_that_of_the_client():
    settings = ActiveSettings(0.3, "bundle", 12, SettingsState(policies={"uploads": 0.9}))
    response = run(request(None, policy="uploads"), Admission(result(1, 2, 3), settings=settings))
    assert (response.parameters["beta"], response.parameters["beta_source"]) == (0.9, "policy")


def test_outputs_are_logits_probabilities_or_labels_in_the_order_of_the_request():
    outputs = (RequestedOutput("probabilities"), LOGITS, RequestedOutput("logits", classification=2))
    probabilities, logits, labels = run(
        request(0, 0, outputs=outputs), Admission(result(0, 0, 0), result(1, 3, 2))
    ).outputs
    np.testing.assert_array_equal(logits.data, np.array([[0, 0, 0], [1, 3, 2]], np.float32))
    np.testing.assert_allclose(probabilities.data.sum(axis=1), 1, rtol=1e-6)
    assert (labels.datatype, labels.shape) == ("BYTES", (2, 2))
    # Ties keep the order of the labels.
    assert labels.data == [b"0.000000:0:cat", b"0.000000:1:dog", b"3.000000:1:dog", b"2.000000:2:owl"]


def test_probabilities_have_the_temperature_of_the_beta_of_their_image_and_logits_have_none():
    temperatures = Temperatures(betas=(0, 1), values=(1, 3))
    results = [result(2, 0, 0, beta=beta, temperatures=temperatures) for beta in (0, 0.5, 1)]
    admission = Admission(*results, temperatures=temperatures)
    response = run(request(0, 0.5, 1, outputs=(LOGITS, RequestedOutput("probabilities"))), admission)
    logits, probabilities = response.outputs
    np.testing.assert_array_equal(logits.data, np.array([[2, 0, 0]] * 3, np.float32))
    expected = [np.exp(2 / temperature) / (np.exp(2 / temperature) + 2) for temperature in (1, 2, 3)]
    np.testing.assert_allclose(probabilities.data[:, 0], expected, rtol=1e-6)
    assert response.parameters["calibrated"] is True


def test_a_classification_of_more_labels_than_the_model_has_gives_all_of_them():
    (labels,) = run(request(0, outputs=(RequestedOutput("logits", 5000),)), Admission(result(1, 3, 2))).outputs
    assert labels.shape == (1, 3)


def test_one_image_that_failed_fails_the_request_and_is_named_among_several():
    error = UndecodableImageError("it is damaged")
    with pytest.raises(InvalidRequestError, match="image 1: it is damaged"):
        run(request(0, 0), Admission(result(1, 2, 3), error))
    with pytest.raises(UndecodableImageError):
        run(request(0), Admission(error))
    with pytest.raises(InferenceError):
        run(request(0, 0), Admission(result(1, 2, 3), InferenceError()))


def test_a_timeout_of_the_request_is_a_deadline():
    with pytest.raises(DeadlineError):
        run(request(0, timeout_us=1000), Admission())
    assert run(request(0, timeout_us=60_000_000), Admission(result(1, 2, 3))).id == "order-66"


def test_the_statistics_hold_the_longest_time_of_each_stage():
    statistics = Statistics()
    results = (result(1, 2, 3, decode_s=0.002, queue_s=0.001), result(1, 2, 3, decode_s=0.001, inference_s=0.003))
    run(request(0, 0), Admission(*results), statistics)
    assert statistics.images == 2
    stages = (statistics.compute_input, statistics.queue, statistics.compute_infer)
    assert [(stage.count, stage.ns) for stage in stages] == [(1, 2_000_000), (1, 1_000_000), (1, 3_000_000)]
