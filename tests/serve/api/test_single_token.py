"""A model of one token over HTTP: it classifies images, and refuses a β instead of ignoring it."""

import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.http.problems import MEDIA_TYPE
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import load_bundle


def serving(bundle_path, **changes):
    settings = Settings(bundle=bundle_path, engine="onnxruntime", max_batch=2, **changes)
    return TestClient(create_app(Service(settings, load_bundle(bundle_path), Metrics())))


@pytest.fixture(scope="module")
def client(single_token_bundle):
    with serving(single_token_bundle) as client:
        yield client


@pytest.fixture(scope="module")
def image(photos):
    return (photos / "cat" / "001.jpg").read_bytes()


def test_a_response_without_a_beta_has_a_null_beta(client, image):
    answer = client.post("/classify?top_k=2", content=image).json()
    assert (answer["beta"], answer["beta_source"], answer["revision"]) == (None, "bundle", 0)
    assert len(answer["predictions"]) == 2


@pytest.mark.parametrize("beta", ["0", "1", "0.5", "clean", "robust"])
def test_every_beta_is_refused_by_its_code(client, image, beta):
    response = client.post(f"/classify?beta={beta}", content=image)
    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (422, MEDIA_TYPE)
    assert (problem["code"], problem["status"]) == ("single_token", 422)
    assert "leave beta out, or co-train" in problem["detail"]


@pytest.mark.parametrize("path", ["/classify?strength=0.5", "/sweep?strengths=0,1"])
def test_a_strength_is_refused_by_the_same_code(client, image, path):
    assert client.post(path, content=image).json()["code"] == "single_token"


def test_an_unparsable_beta_is_invalid_for_a_single_token(client, image):
    assert client.post("/classify?beta=x", content=image).json()["code"] == "invalid_beta"


def test_openapi_has_no_beta_parameter_and_an_optional_beta_in_responses(client):
    schema = client.get("/openapi.json").json()
    parameters = schema["paths"]["/classify"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["top_k", "timeout_ms"]
    beta = schema["components"]["schemas"]["ClassifyResponse"]["properties"]["beta"]
    assert {"type": "null"} in beta["anyOf"]
    assert "beta" in schema["components"]["schemas"]["ClassifyResponse"]["required"]


def test_metrics_keep_to_closed_sets(single_token_bundle, image):
    with serving(single_token_bundle) as client:
        client.post("/classify", content=image)
        client.post("/classify?beta=1", content=image)
        text = client.get("/metrics").text
    assert 'tureen_classifications_total{beta="single",beta_source="bundle"} 1.0' in text
    assert 'tureen_rejections_total{code="single_token"} 1.0' in text
    assert "tureen_default_beta NaN" in text


def test_a_default_beta_fails_at_the_start(single_token_bundle):
    command = [sys.executable, "-m", "tureen.cli", "serve", str(single_token_bundle), "--default-beta", "0.3"]
    shown = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert shown.returncode == 2
    assert "one token, so there is no β to choose: leave --default-beta out" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_equal_tokens_accept_any_beta_and_give_one_result(equal_tokens_bundle, image):
    with serving(equal_tokens_bundle, default_beta=0.4) as client:
        answers = [client.post(f"/classify{query}", content=image).json() for query in ("", "?beta=0", "?beta=robust")]
    assert [(answer["beta"], answer["beta_source"]) for answer in answers] == [
        (0.4, "operator"),
        (0, "request"),
        (1, "request"),
    ]
    probabilities = [[p["probability"] for p in answer["predictions"]] for answer in answers]
    assert probabilities[1] == probabilities[2]
    # 0.6 · token + 0.4 · token is the token up to float32 rounding.
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)
