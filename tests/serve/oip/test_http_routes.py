"""The protocol over HTTP in one process with the example bundle: responses as JSON and as binary data."""

import base64
import gzip
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import tureen
from serve.api.app import create_app
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.patience import DEADLINE_S

INFER = "/v2/models/cifar10/infer"
HEADER = "Inference-Header-Content-Length"


@contextmanager
def serving(bundle, **changes):
    patient = {"timeout_ms": round(1000 * DEADLINE_S)}  # on a stalled machine the default gives a 504
    settings = Settings(bundle=bundle.path, engine="onnxruntime", max_batch=8, **patient, **changes)
    with TestClient(create_app(Service(settings, bundle, Metrics())), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(bundle):
    with serving(bundle) as client:
        yield client


def image_input(images):
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images), 1], "data": data}


def beta_input(*betas):
    return {"name": "beta", "datatype": "FP32", "shape": [len(betas), 1], "data": betas}


def infer(client, *inputs, path=INFER, **rest):
    return client.post(path, json={"inputs": inputs, **rest})


def tensor(response, name="logits"):
    assert response.status_code == 200, response.text
    (output,) = [output for output in response.json()["outputs"] if output["name"] == name]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def is_error(response, status, words=""):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert words in body["error"]
    for leak in ("0x", "PIL", "Traceback", ".py", "/work", "site-packages", "object at"):
        assert leak not in body["error"]


def test_health_has_the_keys_that_kserve_reads(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/cifar10/ready", f"/v2/models/cifar10/versions/{version(client)}/ready"):
        assert client.get(path).json() == {"name": "cifar10", "ready": True}


def version(client):
    return client.get("/v2/models/cifar10").json()["versions"][0]


def test_metadata_names_only_existing_tensors_and_extensions(client, bundle):
    server = client.get("/v2").json()
    assert (server["name"], server["version"]) == ("tureen", tureen.__version__)
    assert not {"sequence", "system_shared_memory", "trace", "logging", "model_repository"} & set(server["extensions"])
    assert client.get("/v2/models/cifar10").json() == {
        "name": "cifar10",
        "versions": [bundle.manifest.version],
        "platform": "tureen",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
            {"name": "beta", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "weights", "datatype": "FP32", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }


def test_the_configuration_has_the_fields_that_perf_analyzer_reads(client):
    config = client.get("/v2/models/cifar10/config").json()
    assert config["max_batch_size"] == 64
    assert config["input"][1] == {
        "name": "pixels",
        "data_type": "TYPE_UINT8",
        "dims": [32, 32, 3],
        "optional": True,
    }
    assert config["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0


def test_the_repository_index_lists_the_model(client, bundle):
    index = client.post("/v2/repository/index", json={}).json()
    assert index == [{"name": "cifar10", "version": bundle.manifest.version, "state": "READY"}]


def test_an_image_gets_the_result_of_the_library_with_its_beta_and_source(client, library, images):
    response = infer(client, image_input(images[:1]), id="order-66", parameters={"beta": 0.7})
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("cifar10", version(client), "order-66")
    (expected,) = library.classify(images[:1], beta=0.7, top_k=10)
    assert answer["parameters"] == {
        "beta": 0.7,
        "strength": expected.strength,
        "beta_source": "request",
        "revision": 0,
        "calibrated": expected.calibrated,
    }
    probabilities = tensor(response, "probabilities")[0]
    for prediction in expected.predictions:
        assert probabilities[prediction.index] == pytest.approx(prediction.probability, abs=1e-5)


def test_pixels_images_json_and_binary_all_give_the_same_logits(client, images, pixels):
    encoded = tensor(infer(client, image_input(images)))
    head = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    np.testing.assert_allclose(tensor(infer(client, {**head, "data": pixels.tolist()})), encoded, atol=1e-5)
    fields = {"inputs": [{**head, "parameters": {"binary_data_size": pixels.nbytes}}]}
    text = json.dumps({**fields, "parameters": {"binary_data_output": True}}).encode()
    response = client.post(INFER, content=text + pixels.tobytes(), headers={HEADER.lower(): str(len(text))})
    assert response.status_code == 200
    length = int(response.headers[HEADER])
    answer = json.loads(response.content[:length])
    assert [output["parameters"]["binary_data_size"] for output in answer["outputs"]] == [120, 120]
    logits = np.frombuffer(response.content[length : length + 120], "<f4").reshape(3, 10)
    np.testing.assert_allclose(logits, encoded, atol=1e-5)


def test_mixed_betas_in_one_request_equal_single_requests(client, images):
    betas = [0.0, 0.3, 1.0]
    response = infer(client, image_input(images), beta_input(*betas))
    assert response.json()["parameters"]["beta"] == "0.0,0.3,1.0"
    alone = [
        tensor(infer(client, image_input([image]), parameters={"beta": beta}))
        for image, beta in zip(images, betas, strict=True)
    ]
    # Another batch size sums float32 in another order.
    np.testing.assert_allclose(tensor(response), np.concatenate(alone), atol=1e-4)


def test_strength_may_come_in_the_query_or_as_a_parameter(client, bundle, images):
    beta = bundle.manifest.strength.beta_at(0.5)
    for request in ({"path": f"{INFER}?strength=0.5"}, {"parameters": {"strength": 0.5}}):
        parameters = infer(client, image_input(images), **request).json()["parameters"]
        assert (parameters["strength"], parameters["beta"], parameters["beta_source"]) == (0.5, beta, "request")
    is_error(infer(client, image_input(images), path=f"{INFER}?strength=0.5&beta=1"), 400, "or both: give one of them")
    is_error(infer(client, image_input(images), path=f"{INFER}?strength=2"), 400, "the strength is '2'")


def test_beta_may_come_in_the_query_if_it_comes_nowhere_else(client, bundle, images):
    path = f"{INFER}?beta=robust"
    assert infer(client, image_input(images), path=path).json()["parameters"]["beta"] == 1.0
    is_error(
        infer(client, image_input(images), path=path, parameters={"beta": 0.5}), 400, "beta is given more than once"
    )
    assert infer(client, image_input(images)).json()["parameters"] == {
        "beta": 0.0,
        "strength": 0.0,
        "beta_source": "bundle",
        "revision": 0,
        "calibrated": bundle.manifest.temperatures.is_calibrated,
    }
    is_error(infer(client, image_input(images), path=f"{path}&beta=0"), 400, "more than once")
    is_error(infer(client, image_input(images), path=f"{INFER}?Beta=0"), 400, "use only beta or strength")


def test_a_body_that_is_an_image_itself_needs_no_json(client, images):
    response = client.post(f"{INFER}?beta=0.5", content=images[0], headers={HEADER: "0"})
    alone = infer(client, image_input(images[:1]), parameters={"beta": 0.5})
    np.testing.assert_array_equal(tensor(response), tensor(alone))


def test_classification_gives_values_indices_and_labels_the_best_first(client, library, images):
    outputs = [{"name": "probabilities", "parameters": {"classification": 3}}]
    (output,) = infer(client, image_input(images), outputs=outputs).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [3, 3])
    best = [prediction for c in library.classify(images, top_k=3) for prediction in c.predictions]
    for text, prediction in zip(output["data"], best, strict=True):
        value, index, label = text.split(":", 2)
        assert (int(index), label) == (prediction.index, prediction.label)
        assert float(value) == pytest.approx(prediction.probability, abs=1e-4)


def test_a_request_for_too_many_labels_gives_all(client, images):
    outputs = [{"name": "logits", "parameters": {"classification": 5000}}]
    assert infer(client, image_input(images), outputs=outputs).json()["outputs"][0]["shape"] == [3, 10]


def test_one_bad_image_is_named_and_neighbouring_requests_are_unharmed(client, images):
    with ThreadPoolExecutor(4) as clients:
        bad = clients.submit(infer, client, image_input([images[0], images[1][:200], images[2]]))
        good = [clients.submit(infer, client, image_input([image])) for image in images]
    is_error(bad.result(), 400, "image 1: ")
    assert [response.result().status_code for response in good] == [200] * 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/cifar10/versions/9/infer", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/other/config", 404),
        ("GET", "/v2/models/other/stats", 404),
        ("GET", "/v2/nothing/here", 404),
        ("GET", "/v2/", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/cifar10", 405),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501),
        ("GET", "/v2/trace/setting", 501),
        ("POST", "/v2/logging", 501),
        ("POST", "/v2/repository/models/cifar10/unload", 501),
    ],
)
def test_an_unknown_path_has_an_error_in_the_form_of_the_protocol(client, method, path, status):
    is_error(client.request(method, path), status)


def test_a_path_that_only_begins_like_the_protocol_is_a_problem(client):
    assert client.get("/v2x").json()["code"] == "not_found"


def test_wrong_images_betas_and_framing_are_400s(client, images):
    is_error(infer(client, image_input([b"no image"])), 400, "not a JPEG, PNG or WebP")
    is_error(infer(client, image_input([b""])), 400, "empty")
    is_error(infer(client, image_input(images), parameters={"beta": "0,7"}), 400, "β is '0,7'")
    is_error(client.post(INFER, content=b"{"), 400, "JSON")
    is_error(client.post(INFER, content=b"{}", headers={HEADER: "3"}), 400, HEADER)
    is_error(client.post(INFER, content=b"{}", headers={"content-encoding": "gzip"}), 400, "Content-Encoding")


def test_a_body_or_an_image_beyond_its_limit_is_a_413(bundle, images, encode):
    with serving(bundle, max_request_bytes=5000, max_image_pixels=10_000) as client:
        is_error(client.post(INFER, content=b" " * 5001), 413, "5,000 bytes")
        is_error(client.post(INFER, content=iter([b" " * 3000] * 2)), 413, "5,000 bytes")
        is_error(infer(client, image_input([encode(Image.new("RGB", (101, 100)), "JPEG", quality=5)])), 413, "10,000")
        assert infer(client, image_input(images[:1])).status_code == 200


def test_too_many_images_are_a_400_with_the_limit(bundle, images):
    with serving(bundle, max_images_per_request=2) as client:
        assert client.get("/v2/models/cifar10/config").json()["max_batch_size"] == 2
        is_error(infer(client, image_input(images)), 400, "send 1 to 2")


def test_overload_is_a_429_with_a_retry_after(bundle, images):
    with serving(bundle, max_requests=1) as client, client.app.state.service.admit():
        response = infer(client, image_input(images))
        is_error(response, 429)
        assert int(response.headers["retry-after"]) >= 1


def test_before_it_is_ready_the_server_lives_and_the_model_is_a_503(bundle, images):
    service = Service(Settings(bundle=bundle.path), bundle, Metrics())
    client = TestClient(create_app(service))  # without `with`, so that the engine is never opened
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/cifar10/ready", "/v2/models/cifar10"):
        is_error(client.get(path), 503)
    is_error(infer(client, image_input(images)), 503)


def test_a_timeout_in_microseconds_is_a_504_when_it_passes(client, encode):
    # Takes about 10 ms to decode. An image of noise waits for no other, as one of few bytes and many pixels would.
    large = encode(Image.effect_noise((1000, 1000), 64))
    is_error(infer(client, image_input([large]), parameters={"timeout": 1000}), 504, "the deadline passed")
    assert infer(client, image_input([large]), parameters={"timeout": 60_000_000}).status_code == 200


def test_an_internal_defect_is_a_500_in_the_format_of_the_protocol(bundle):
    with serving(bundle) as client:

        @client.app.get("/v2/defect")
        async def defect():
            raise KeyError("/etc/passwd")

        is_error(client.get("/v2/defect"), 500)


def test_statistics_count_requests_images_and_stages(bundle, images):
    with serving(bundle) as client:
        infer(client, image_input(images))
        infer(client, image_input(images[:1]))
        infer(client, image_input([b"no image"]))
        for path in ("/v2/models/cifar10/stats", "/v2/models/stats"):
            (stats,) = client.get(path).json()["model_stats"]
            assert (stats["name"], stats["inference_count"]) == ("cifar10", 4)
            assert 2 <= stats["execution_count"] <= 4
            assert stats["last_inference"] > 1.7e12
            counts = {name: duration["count"] for name, duration in stats["inference_stats"].items()}
            assert counts.pop("fail") == 1
            assert set(counts.values()) == {2}
            assert stats["inference_stats"]["compute_infer"]["ns"] > 0


def test_requests_are_logged_with_their_beta_and_counted_by_route(client, images, caplog):
    caplog.set_level("INFO", logger="tureen.access")
    infer(client, image_input(images), parameters={"beta": 0.5})
    (record,) = [record for record in caplog.records if record.name == "tureen.access"]
    assert (record.fields["route"], record.fields["images"], record.fields["beta"]) == (
        "/v2/models/{name}/infer",
        3,
        0.5,
    )


def compressed(client, body, encoding, **headers):
    return client.post(INFER, content=body, headers={"Content-Encoding": encoding, **headers})


def test_a_compressed_body_is_the_body(client, images):
    body = json.dumps({"inputs": [image_input(images)]}).encode()
    plain = tensor(client.post(INFER, content=body))
    for encoding, made in (
        ("gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("GZIP", gzip.compress(body)),
    ):
        np.testing.assert_allclose(tensor(compressed(client, made, encoding)), plain, atol=1e-4)  # other batch sizes


def test_binary_tensors_may_be_compressed_with_their_json(client, pixels):
    inputs = [{"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}]
    inputs[0]["parameters"] = {"binary_data_size": pixels.nbytes}
    text = json.dumps({"inputs": inputs}).encode()
    response = compressed(client, gzip.compress(text + pixels.tobytes()), "gzip", **{HEADER: str(len(text))})
    assert tensor(response).shape == (3, 10)


def test_a_body_that_decompresses_beyond_the_limit_is_refused(bundle):
    with serving(bundle, max_request_bytes=100_000, max_body_memory=3 * 2**20) as client:
        is_error(compressed(client, gzip.compress(bytes(100_001)), "gzip"), 413, "more than 100,000 bytes")
        is_error(compressed(client, gzip.compress(bytes(2**29)), "gzip"), 413, "100,000 bytes")
        is_error(compressed(client, gzip.compress(bytes(100_000)), "gzip"), 400, "JSON")
        nothing = zlib.compressobj(wbits=31)  # empty blocks, which decompress to nothing
        empty = b"".join(nothing.compress(b"") + nothing.flush(zlib.Z_FULL_FLUSH) for _ in range(30_000))
        is_error(compressed(client, empty, "gzip"), 413, "100,000 bytes")
        assert client.app.state.service.metrics.registry.get_sample_value("tureen_body_bytes") == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_contradicts_its_encoding_is_refused(client, images, encoding):
    made = gzip.compress(json.dumps({"inputs": [image_input(images)]}).encode())
    for body in (b"", b"{}", made[:-1], made[:-9], made + b"x", made + made, b"\0" + made):
        is_error(compressed(client, body, encoding), 400, "not one whole gzip or zlib stream")


def test_another_encoding_is_refused_and_names_those_that_are_read(client):
    for encoding in ("br", "zstd", "gzip, gzip"):
        is_error(compressed(client, b"x", encoding), 400, "use gzip or deflate")
