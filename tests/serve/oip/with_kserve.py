"""Tests a running server with the kserve client. Run by test_clients.py."""

import asyncio
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

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


def encoded(images):
    return np.array([[image] for image in images], dtype=np.object_)


def kserve_request(name, array, *, binary, **parameters):
    datatype = {np.object_: "BYTES", np.uint8: "UINT8"}[array.dtype.type]
    tensor = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=MODEL, infer_inputs=[tensor], request_id="order-66", parameters=parameters)


def read(response, name="logits"):
    (output,) = [output for output in response.outputs if output.name == name]
    return output.as_numpy()


def test_kserve_over_http(known, images):
    async def scenario():
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            base = f"http://{HTTP}"
            assert await client.is_server_live(base)
            assert await client.is_server_ready(base)
            assert await client.is_model_ready(base, MODEL)
            assert not await client.is_model_ready(base, "other")
            beta = float(known["betas"][1])
            for request in (
                kserve_request("pixels", known["pixels"][1:2], binary=True, beta=beta),
                kserve_request("pixels", known["pixels"][1:2], binary=False, beta=beta),
                kserve_request("image", encoded(images[1:2]), binary=True, beta=beta),
            ):
                response = await client.infer(base, request, model_name=MODEL)
                assert (response.model_name, response.id) == (MODEL, "order-66")
                np.testing.assert_allclose(read(response).reshape(1, 10), known["logits"][1:2], **CLOSE)
            with pytest.raises(httpx.HTTPStatusError, match="there is no model 'other'"):
                await client.infer(base, request, model_name="other")

    asyncio.run(scenario())


def test_kserve_over_grpc(known, images):
    async def scenario():
        async with InferenceGRPCClient(GRPC) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL)
            assert not await client.is_model_ready("other")
            beta = str(known["betas"][1])  # this client cannot send float parameters over gRPC
            for request in (
                kserve_request("pixels", known["pixels"][1:2], binary=True, beta=beta),
                kserve_request("pixels", known["pixels"][1:2], binary=False, beta=beta),
                kserve_request("image", encoded(images[1:2]), binary=True, beta=beta),
            ):
                response = await client.infer(request)
                assert (response.model_name, response.id) == (MODEL, "order-66")
                np.testing.assert_allclose(read(response).reshape(1, 10), known["logits"][1:2], **CLOSE)

    asyncio.run(scenario())
