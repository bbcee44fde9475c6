"""Named tokens and mixes over HTTP and the Open Inference Protocol, with a bundle that has a third token."""

import base64
import dataclasses
import hashlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
from starlette.testclient import TestClient

import tureen
from serve.api.app import create_app
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.conftest import encoded
from tests.learned_tokens import make_token
from tests.patience import DEADLINE_S
from tureen.bundle.bundle import MANIFEST, TOKENS, load_bundle, record_files
from tureen.bundle.examples import find_bundle
from tureen.bundle.token_file import write_token
from tureen.errors import EngineError, TokenFileError
from tureen.pictures.signs import drawn_picture
from tureen.tokens import parse_mix

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def fog_bundle(tmp_path_factory):
    """The example of traffic signs with the additional token `fog`, far from both modes."""
    path = tmp_path_factory.mktemp("bundle") / "signs"
    shutil.copytree(find_bundle("signs"), path)
    bundle = load_bundle(path)
    noise = np.random.default_rng(0).normal(0, 1, bundle.clean_token.shape).astype(np.float32)
    data = safetensors.numpy.save({**bundle.tokens, "fog": bundle.clean_token + noise})
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, **record_files({TOKENS: data})}})
    (path / TOKENS).write_bytes(data)
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path


@pytest.fixture(scope="module")
def client(fog_bundle):
    settings = Settings(bundle=fog_bundle, engine="onnxruntime", precision="fp32", max_images_per_request=64)
    with TestClient(create_app(Service(settings, load_bundle(fog_bundle), Metrics()))) as client:
        yield client


@pytest.fixture(scope="module")
def soup(fog_bundle):
    with tureen.load(fog_bundle, engine="onnxruntime", precision="fp32") as soup:
        yield soup


@pytest.fixture(scope="module")
def image():
    return encoded(drawn_picture("stop", 0).resize((32, 32)))


def same_predictions(found, expected):
    shown = {one["label"]: one["probability"] for one in found["predictions"]}
    assert shown == pytest.approx({one.label: one.probability for one in expected.predictions}, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("query", "choice"),
    [
        ("token=fog", {"token": "fog"}),
        ("token=fog&beta=0.5", {"token": "fog", "beta": 0.5}),
        ("token=fog&strength=0.5", {"token": "fog", "strength": 0.5}),
        ("mix=fog:3,robust:1", {"mix": "fog:3,robust:1"}),
        ("mix=fog:0.5&normalize=false", {"mix": "fog:0.5", "normalize": False}),
        ("mix=clean:1,robust:1", {"beta": 0.5}),
        ("token=clean", {"beta": 0.0}),
    ],
)
def test_a_choice_of_tokens_gives_the_answer_of_the_library(client, soup, image, query, choice):
    found = client.post(f"/classify?{query}", content=image).json()
    (expected,) = soup.classify([image], **choice)
    same_predictions(found, expected)
    assert {name: found[name] for name in ("beta", "strength", "mix", "calibrated")} == {
        name: getattr(expected, name) for name in ("beta", "strength", "mix", "calibrated")
    }
    assert found["beta_source"] == "request"


def test_each_image_of_a_request_has_its_own_tokens(client, soup, image):
    choices = [{"token": "fog"}, {"mix": {"fog": 1, "robust": 1}}, {"beta": 0.25}, {}]
    data = base64.b64encode(image).decode()
    body = {"images": [{"data": data, **choice} for choice in choices]}
    found = client.post("/classify?mix=fog:1,clean:1", json=body).json()
    assert found["calibrated"] is False
    for result, choice in zip(found["results"], [*choices[:3], {"mix": "fog:1,clean:1"}], strict=True):
        (expected,) = soup.classify([image], **choice)
        assert result["mix"] == expected.mix
        same_predictions(result, expected)


def test_a_form_takes_a_token_for_each_image(client, image):
    files = [("image", ("a.png", image)), ("image", ("b.png", image))]
    found = client.post("/classify", files=files, data={"token": ["fog", "robust"]}).json()
    assert [result["mix"] for result in found["results"]] == [{"fog": 1}, None]
    assert [result["beta"] for result in found["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        ("token=frog", "unknown_token", "did you mean 'fog'?; the tokens are clean, fog, robust"),
        ("mix=mist:1", "unknown_token", "the tokens are clean, fog, robust"),
        ("mix=fog:-1", "invalid_mix", "weight of fog"),
        ("mix=fog", "invalid_mix", "not a token with its weight"),
        ("token=Fog", "invalid_mix", "cannot be the name of a token"),
        ("mix=fog:1&beta=1", "invalid_parameter", "exclude each other"),
        ("normalize=false", "invalid_parameter", "belongs to a mix"),
    ],
)
def test_another_choice_is_refused_by_its_code(client, image, query, code, words):
    response = client.post(f"/classify?{query}", content=image)
    assert (response.status_code, response.json()["code"]) == (422, code)
    assert words in response.json()["detail"]


def test_the_protocol_takes_tokens_as_parameters(client, soup, image):
    pixels = soup._pixels(0, image)
    inputs = [{"name": "pixels", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": [pixels.tolist()] * 2}]
    outputs = [{"name": "logits"}, {"name": "probabilities"}]

    def infer(**parameters):
        body = {"inputs": inputs, "outputs": outputs, "parameters": parameters}
        return client.post("/v2/models/signs/infer", json=body)

    for parameters, mix in (
        ({"token": "fog"}, "fog:1"),
        ({"token": "fog", "beta": 0.25}, "fog:3,robust:1"),
        ({"mix": "fog:3,robust:1"}, "fog:3,robust:1"),
    ):
        answer = infer(**parameters).json()
        parsed = parse_mix(mix)
        vector = parsed.vector(soup.tokens)
        expected = soup.logits(np.stack([pixels] * 2), [vector] * 2)
        np.testing.assert_allclose(answer["outputs"][0]["data"], expected.ravel(), atol=TOLERANCE)
        assert parse_mix(answer["parameters"]["mix"]) == parsed
        assert answer["parameters"]["calibrated"] is False
        assert "strength" not in answer["parameters"]
    scaled = infer(mix="fog:2", normalize=False).json()["parameters"]
    assert scaled["mix"] == "fog:2.0"
    for parameters in ({"token": 7}, {"mix": 7}, {"normalize": True}, {"mix": "fog:1", "token": "fog"}):
        assert infer(**parameters).status_code == 400, parameters
    unknown = infer(token="frog")
    assert (unknown.status_code, "did you mean 'fog'" in unknown.json()["error"]) == (400, True)


def test_metrics_count_a_mix_apart_from_beta(client, image):
    client.post("/classify?token=fog", content=image)
    assert 'tureen_classifications_total{beta="mix",beta_source="request"}' in client.get("/metrics").text


def test_sixty_four_tokens_share_a_batch(client, image):
    data = base64.b64encode(image).decode()
    shares = np.linspace(0.5, 1, 64)
    body = {"images": [{"data": data, "mix": {"fog": share, "robust": 1 - share}} for share in shares]}
    found = client.post("/classify", json=body).json()
    assert [result["mix"]["fog"] for result in found["results"]] == pytest.approx(list(shares))
    digests = {hashlib.sha256(str(result["predictions"]).encode()).hexdigest() for result in found["results"]}
    assert len(digests) > 32


def test_a_directory_of_token_files_is_read_at_the_start_and_at_a_reload(soup, fog_bundle, image, tmp_path):
    night, rain = make_token(soup, "night", 1), make_token(soup, "rain", 2)
    write_token(tmp_path / "night.token", night)
    settings = Settings(bundle=fog_bundle, engine="onnxruntime", precision="fp32", token_dir=tmp_path)
    service = Service(settings, load_bundle(fog_bundle), Metrics())
    with TestClient(create_app(service)) as client:
        assert client.post("/classify?token=night", content=image).json()["mix"] == {"night": 1}
        (tmp_path / "night.token").rename(tmp_path / "night")
        write_token(tmp_path / "rain.token", rain)
        client.portal.call(service.reload)
        assert client.post("/classify?token=rain", content=image).status_code == 200
        assert client.post("/classify?token=night", content=image).json()["code"] == "unknown_token"
        (tmp_path / "rain.token").write_bytes(b"damaged")
        with pytest.raises(TokenFileError, match=r"rain\.token is not a token file"):
            client.portal.call(service.reload)
        wrong = dataclasses.replace(rain, golden_logits=rain.golden_logits + 1)
        write_token(tmp_path / "rain.token", wrong)
        with pytest.raises(EngineError, match="does not reproduce the logits of the token rain"):
            client.portal.call(service.reload)
        assert client.post("/classify?token=rain", content=image).status_code == 200


def test_a_server_with_a_wrong_token_file_does_not_start(start_server, tmp_path):
    (tmp_path / "fog.token").write_bytes(b"damaged")
    server = start_server("--token-dir", str(tmp_path))
    assert server.process.wait(DEADLINE_S) == 1
    assert "fog.token is not a token file: `tureen adapt` writes one" in server.log_file.read_text()
    server = start_server("--token-dir", str(tmp_path), "--max-tokens", "0")
    assert server.process.wait(DEADLINE_S) == 2
