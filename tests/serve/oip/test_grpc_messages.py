"""The gRPC messages of an inference request carry the same content as its JSON."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidRequestError
from serve.oip.codec import InferResponse
from serve.oip.grpc_messages import decode_message, encode_message
from serve.oip.proto import inference_pb2 as pb
from serve.oip.request import RequestedOutput, RequestLimits
from serve.oip.tensors import Tensor
from tureen.errors import InvalidBetaError

LIMITS = RequestLimits(image_size=4, max_images=8)
Input = pb.ModelInferRequest.InferInputTensor


@given(count=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), is_raw=st.booleans())
def test_pixels_and_betas_arrive_raw_or_as_contents(count, seed, is_raw):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    betas = random.random((count, 1), dtype=np.float32)
    request = pb.ModelInferRequest(
        inputs=[
            Input(name="pixels", datatype="UINT8", shape=pixels.shape),
            Input(name="beta", datatype="FP32", shape=betas.shape),
        ]
    )
    if is_raw:
        request.raw_input_contents.extend([pixels.tobytes(), betas.tobytes()])
    else:
        request.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
        request.inputs[1].contents.fp32_contents.extend(betas.ravel().tolist())
    decoded = decode_message(request, LIMITS)
    np.testing.assert_array_equal(np.stack(decoded.images), pixels)
    np.testing.assert_array_equal(np.array(decoded.choices, np.float32), betas.ravel())


def image_request(**parameters):
    request = pb.ModelInferRequest(inputs=[Input(name="image", datatype="BYTES", shape=[1])])
    request.inputs[0].contents.bytes_contents.append(b"\xff\xd8 no base64")
    for name, parameter in parameters.items():
        request.parameters[name].CopyFrom(parameter)
    return request


@pytest.mark.parametrize(
    ("parameter", "beta"),
    [
        (pb.InferParameter(double_param=0.7), 0.7),
        (pb.InferParameter(int64_param=1), 1.0),
        (pb.InferParameter(uint64_param=0), 0.0),
        (pb.InferParameter(string_param="0.7"), 0.7),  # clients without double_param send a string
        (pb.InferParameter(string_param="robust"), 1.0),
    ],
)
def test_beta_is_a_double_a_whole_number_or_a_text(parameter, beta):
    decoded = decode_message(image_request(beta=parameter), LIMITS)
    assert decoded.images == (b"\xff\xd8 no base64",)
    assert decoded.choices == (beta,)


@pytest.mark.parametrize("parameter", [pb.InferParameter(bool_param=True), pb.InferParameter()])
def test_a_beta_that_is_none_is_refused(parameter):
    with pytest.raises(InvalidBetaError):
        decode_message(image_request(beta=parameter), LIMITS)


def test_raw_contents_are_of_all_inputs_or_of_none():
    request = image_request()
    request.raw_input_contents.extend([b"", b""])
    with pytest.raises(InvalidRequestError, match="for all or none"):
        decode_message(request, LIMITS)


def test_contents_beside_raw_contents_are_refused():
    request = image_request()
    request.raw_input_contents.append(b"\3\0\0\0raw")
    with pytest.raises(InvalidRequestError, match="in one of them"):
        decode_message(request, LIMITS)
    request.inputs[0].contents.Clear()  # some clients send empty contents beside raw data
    assert decode_message(request, LIMITS).images == (b"raw",)


def test_the_classification_extension_is_a_parameter_of_an_output():
    request = image_request()
    output = request.outputs.add(name="probabilities")
    output.parameters["classification"].int64_param = 3
    assert decode_message(request, LIMITS).outputs == (RequestedOutput("probabilities", 3, True),)


def test_the_tensors_of_a_response_are_raw_and_its_parameters_typed():
    logits = Tensor("logits", "FP32", (1, 2), np.array([[1, 2]], np.float32))
    labels = Tensor("probabilities", "BYTES", (1, 1), [b"0.9:1:b"])
    parameters = {"beta": 0.7, "beta_source": "request", "revision": 3, "calibrated": True}
    message = encode_message(InferResponse("digits", "v1", "7", parameters, (logits, labels)))
    assert (message.model_name, message.model_version, message.id) == ("digits", "v1", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
        ("logits", "FP32", [1, 2]),
        ("probabilities", "BYTES", [1, 1]),
    ]
    assert list(message.raw_output_contents) == [logits.data.tobytes(), b"\7\0\0\x000.9:1:b"]
    assert message.parameters["beta"].double_param == 0.7
    assert message.parameters["beta_source"].string_param == "request"
    assert message.parameters["revision"].int64_param == 3
    assert message.parameters["calibrated"].bool_param is True
