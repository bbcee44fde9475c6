"""Tests a running server with tritonclient. Run by test_clients.py."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

HTTP = os.environ["HTTP_ADDRESS"]
GRPC = os.environ["GRPC_ADDRESS"]
MODEL = "cifar10"
CLOSE = {"atol": 1e-4}  # the batch size changes the order of float32 sums


@pytest.fixture(scope="module")
def known():
    """Arrays pixels uint8 (3, 32, 32, 3), betas (3,), and expected logits float32 (3, 10) of each image at its β."""
    return np.load(Path(os.environ["KNOWN"]) / "known.npz")


@pytest.fixture(scope="module")
def images():
    return [(Path(os.environ["KNOWN"]) / f"{index}.jpg").read_bytes() for index in range(3)]


@pytest.fixture(params=["http", "grpc"])
def triton(request):
    module, address = {"http": (triton_http, HTTP), "grpc": (triton_grpc, GRPC)}[request.param]
    client = module.InferenceServerClient(address)
    client.module = module
    yield client
    client.close()


def tensor(module, name, array, **options):
    datatype = {np.object_: "BYTES", np.uint8: "UINT8", np.float32: "FP32"}[array.dtype.type]
    infer_input = module.InferInput(name, list(array.shape), datatype)
    infer_input.set_data_from_numpy(array, **options)
    return infer_input


def encoded(images):
    return np.array([[image] for image in images], dtype=np.object_)


def test_triton_finds_server_and_model_live_and_ready(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(MODEL)
    assert not triton.is_model_ready("other")


def test_triton_reads_metadata_configuration_index_and_statistics(triton):
    options = {} if triton.module is triton_http else {"as_json": True}
    assert "statistics" in triton.get_server_metadata(**options)["extensions"]
    metadata = triton.get_model_metadata(MODEL, **options)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "pixels", "beta", "weights"]
    config = triton.get_model_config(MODEL, **options)
    config = config.get("config", config)
    assert config["max_batch_size"] == 64
    index = triton.get_model_repository_index(**options)
    assert (index["models"] if isinstance(index, dict) else index)[0]["state"] == "READY"
    (stats,) = triton.get_inference_statistics(MODEL, **options)["model_stats"]
    assert stats["name"] == MODEL


def test_triton_sends_images_with_a_beta_each(triton, images, known):
    inputs = [
        tensor(triton.module, "image", encoded(images)),
        tensor(triton.module, "beta", known["betas"].reshape(3, 1)),
    ]
    result = triton.infer(MODEL, inputs, request_id="order-66")
    np.testing.assert_allclose(result.as_numpy("logits"), known["logits"], **CLOSE)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, atol=1e-6)


def test_triton_sends_pixels_and_beta_as_a_parameter(triton, known):
    for index, beta in enumerate(known["betas"].tolist()):
        pixels = tensor(triton.module, "pixels", known["pixels"][index : index + 1])
        for value in (beta, str(beta)):
            result = triton.infer(MODEL, [pixels], parameters={"beta": value})
            np.testing.assert_allclose(result.as_numpy("logits"), known["logits"][index : index + 1], **CLOSE)


def test_triton_sends_a_strength_as_a_parameter(triton, known):
    pixels = tensor(triton.module, "pixels", known["pixels"])
    by_strength, robust = (triton.infer(MODEL, [pixels], parameters=one) for one in ({"strength": 1.0}, {"beta": 1.0}))
    np.testing.assert_allclose(by_strength.as_numpy("logits"), robust.as_numpy("logits"), **CLOSE)


def test_triton_sends_and_reads_json(known, images):
    client = triton_http.InferenceServerClient(HTTP)
    texts = np.array([[base64.b64encode(image).decode()] for image in images], dtype=np.object_)
    inputs = [
        tensor(triton_http, "image", texts, binary_data=False),
        tensor(triton_http, "beta", known["betas"].reshape(3, 1), binary_data=False),
    ]
    outputs = [triton_http.InferRequestedOutput("logits", binary_data=False)]
    result = client.infer(MODEL, inputs, outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("logits"), known["logits"], **CLOSE)
    pixels = tensor(triton_http, "pixels", known["pixels"], binary_data=False)
    result = client.infer(MODEL, [pixels, inputs[1]])
    np.testing.assert_allclose(result.as_numpy("logits"), known["logits"], **CLOSE)


def test_triton_chooses_beta_in_the_query(known):
    client = triton_http.InferenceServerClient(HTTP)
    pixels = tensor(triton_http, "pixels", known["pixels"][2:])
    result = client.infer(MODEL, [pixels], query_params={"beta": str(known["betas"][2])})
    np.testing.assert_allclose(result.as_numpy("logits"), known["logits"][2:], **CLOSE)
    assert result.get_response()["parameters"]["beta_source"] == "request"


def test_triton_gets_labels_by_the_classification_extension(triton, images):
    outputs = [triton.module.InferRequestedOutput("probabilities", class_count=3)]
    result = triton.infer(MODEL, [tensor(triton.module, "image", encoded(images))], outputs=outputs)
    labels = result.as_numpy("probabilities")
    assert labels.shape == (3, 3)
    value, index, label = labels[0, 0].decode().split(":")
    assert 0 < float(value) <= 1
    assert 0 <= int(index) < 10
    assert label.isalpha()


def test_triton_infers_asynchronously(known):
    client = triton_http.InferenceServerClient(HTTP, concurrency=4)
    pixels = tensor(triton_http, "pixels", known["pixels"])
    betas = tensor(triton_http, "beta", known["betas"].reshape(3, 1))
    for request in [client.async_infer(MODEL, [pixels, betas]) for _ in range(20)]:
        np.testing.assert_allclose(request.get_result().as_numpy("logits"), known["logits"], **CLOSE)


def test_triton_streams(known):
    responses = []
    client = triton_grpc.InferenceServerClient(GRPC)
    client.start_stream(callback=lambda result, error: responses.append((result, error)))
    for index, beta in enumerate(known["betas"].tolist()):
        pixels = tensor(triton_grpc, "pixels", known["pixels"][index : index + 1])
        client.async_stream_infer(MODEL, [pixels], parameters={"beta": beta})
    client.stop_stream()
    assert [error for _, error in responses] == [None] * 3
    logits = np.concatenate([result.as_numpy("logits") for result, _ in responses])
    np.testing.assert_allclose(logits, known["logits"], **CLOSE)


@pytest.mark.parametrize(
    ("model", "parameters", "status", "message"),
    [
        ("other", {}, {"404", "StatusCode.NOT_FOUND"}, "there is no model 'other'"),
        (MODEL, {"beta": "0,7"}, {"400", "StatusCode.INVALID_ARGUMENT"}, "β is '0,7'"),
        (MODEL, {"beta": True}, {"400", "StatusCode.INVALID_ARGUMENT"}, "β is True"),
        (MODEL, {"Beta": 1}, {"400", "StatusCode.INVALID_ARGUMENT"}, "no parameter 'Beta'"),
    ],
)
def test_triton_shows_the_error_message_of_a_wrong_request(triton, known, model, parameters, status, message):
    pixels = tensor(triton.module, "pixels", known["pixels"])
    with pytest.raises(InferenceServerException, match=message) as caught:
        triton.infer(model, [pixels], parameters=parameters)
    assert caught.value.status() in status


def test_triton_shows_that_a_timeout_in_microseconds_has_passed(triton, images):
    image = tensor(triton.module, "image", encoded(images))
    with pytest.raises(InferenceServerException, match="the deadline passed"):
        triton.infer(MODEL, [image], timeout=1)


def test_triton_shows_that_an_image_is_bad(triton, images):
    image = tensor(triton.module, "image", encoded([images[0], images[1][:100]]))
    with pytest.raises(InferenceServerException, match="image 1: the image cannot be decoded"):
        triton.infer(MODEL, [image])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_may_compress_its_requests_over_http_and_not_over_grpc(triton, known, algorithm):
    pixels = tensor(triton.module, "pixels", known["pixels"])
    if triton.module is triton_http:
        response = triton.infer(MODEL, [pixels], request_compression_algorithm=algorithm, parameters={"beta": 1.0})
        plain = triton.infer(MODEL, [pixels], parameters={"beta": 1.0})
        np.testing.assert_allclose(response.as_numpy("logits"), plain.as_numpy("logits"), **CLOSE)
        triton.infer(MODEL, [pixels], response_compression_algorithm=algorithm)  # the server may ignore it
    else:
        with pytest.raises(InferenceServerException, match=f"Compression algorithm '{algorithm}' is disabled"):
            triton.infer(MODEL, [pixels], compression_algorithm=algorithm)
