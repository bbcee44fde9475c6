"""The HTTP bodies of inference: the format that clients rely on, and a 4xx for every wrong input."""

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InferRequestTooLargeError, InvalidRequestError
from serve.http.problems import oip_problem_type
from serve.oip.codec import MAX_JSON_BYTES, InferResponse, decode_request, encode_response
from serve.oip.request import RequestedOutput, RequestLimits
from serve.oip.tensors import Tensor
from tureen.errors import InvalidBetaError, TureenError

LIMITS = RequestLimits(image_size=4, max_images=8)
ONE_PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 4, 4, 3]}
EMPTY_BETA = {"name": "beta", "datatype": "FP32", "shape": [0, 1], "data": []}
ONE_IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}


def in_json(*inputs, **rest):
    return json.dumps({"inputs": inputs, **rest}).encode()


def base64_image(*images, shape=None, **changes):
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": shape or [len(images)], "data": data, **changes}


def in_binary(*inputs, **rest):
    """Returns a body and its header as tritonclient makes them. inputs: pairs of JSON fields and binary data."""
    fields = [{**head, "parameters": {"binary_data_size": len(raw)}} for head, raw in inputs]
    text = in_json(*fields, **rest)
    return text + b"".join(raw for _, raw in inputs), str(len(text))


def decode(body, header=None, **options):
    return decode_request(body, header, **{"limits": LIMITS, **options})


def framed(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def refuses(words, body, header=None, **options):
    with pytest.raises(TureenError, match=words) as caught:
        decode(body, header, **options)
    assert oip_problem_type(caught.value).status in (400, 413)


@given(images=st.lists(st.binary(max_size=50), min_size=1, max_size=8), is_column=st.booleans())
def test_encoded_images_arrive_the_same_from_base64_as_from_binary(images, is_column):
    shape = [len(images), 1] if is_column else [len(images)]
    head = {**ONE_IMAGE, "shape": shape}
    assert decode(in_json(base64_image(*images, shape=shape))).images == tuple(images)
    assert decode(*in_binary((head, framed(*images)))).images == tuple(images)


@given(count=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_pixels_arrive_the_same_nested_flat_and_in_binary(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    head = {**ONE_PIXELS, "shape": list(pixels.shape)}
    bodies = [
        (in_json({**head, "data": pixels.tolist()}), None),
        (in_json({**head, "data": pixels.ravel().tolist()}), None),
        in_binary((head, pixels.tobytes())),
    ]
    for body in bodies:
        images = decode(*body).images
        assert all(image.dtype == np.uint8 for image in images)
        np.testing.assert_array_equal(np.stack(images), pixels)


@given(betas=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_the_betas_of_a_tensor_are_those_numbers_one_an_image(betas):
    images = base64_image(*[b"x"] * len(betas))
    column = {"name": "beta", "datatype": "FP32", "shape": [len(betas), 1]}
    binary = np.array(betas, "<f4").tobytes()
    for got in (
        decode(in_json(images, {**column, "data": betas})),
        decode(
            *in_binary(({**ONE_IMAGE, "shape": [len(betas)]}, framed(*[b"x"] * len(betas))), (column, binary)),
        ),
    ):
        np.testing.assert_array_equal(np.array(got.choices, np.float32), np.array(betas, np.float32))


def test_a_beta_of_float32_is_its_shortest_decimal():
    body = in_binary(
        (ONE_IMAGE, framed(b"x")), ({"name": "beta", "datatype": "FP32", "shape": [1]}, b"\x33\x33\x33\x3f")
    )
    assert decode(*body).choices == (0.7,)


def test_beta_comes_from_the_tensor_the_parameter_or_the_query_and_from_one_of_them_only():
    tensor = {"name": "beta", "datatype": "FP32", "shape": [1, 1], "data": [0.25]}
    image, parameters, query = base64_image(b"x"), {"beta": 0.5}, {"beta": "1"}
    assert decode(in_json(image, tensor)).choices == (0.25,)
    assert decode(in_json(image, parameters=parameters)).choices == (0.5,)
    assert decode(in_json(image), query=query).choices == (1.0,)
    assert decode(in_json(image)).choices == (None,)
    refuses("beta is given more than once", in_json(image, tensor, parameters=parameters))
    refuses("beta is given more than once", in_json(image, tensor), query=query)
    refuses("beta is given more than once", in_json(image, parameters=parameters), query=query)


@pytest.mark.parametrize(("value", "beta"), [("robust", 1), ("clean", 0), ("0.7", 0.7), (0.7, 0.7), (1, 1), (0, 0)])
def test_a_beta_parameter_is_a_number_its_text_or_a_mode(value, beta):
    assert decode(in_json(base64_image(b"x", b"y"), parameters={"beta": value})).choices == (beta, beta)


@pytest.mark.parametrize("value", [True, None, [0.5], {}, "0,7", 1.5, -1, 10**400, "nan", "", 2**63])
def test_an_invalid_beta_is_refused_by_name(value):
    with pytest.raises(InvalidBetaError):
        decode(in_json(base64_image(b"x"), parameters={"beta": value}))


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1.01", "3e38"])
def test_one_wrong_beta_in_a_tensor_refuses_the_request(value):
    beta = {"name": "beta", "datatype": "FP32", "shape": [1, 1]}
    body = in_binary((ONE_IMAGE, framed(b"x")), (beta, np.array([value], "<f4").tobytes()))
    refuses("β is", *body)


def test_base64_is_read_as_elsewhere_and_a_byte_order_mark_before_the_json_too():
    image = {**ONE_IMAGE, "shape": [3], "data": ["data:image/png;base64,-_8", "+/\r\n8=", "-_8="]}
    assert decode(b"\xef\xbb\xbf" + in_json(image)).images == (b"\xfb\xff",) * 3


def test_a_length_of_zero_means_that_the_body_is_the_image_itself():
    request = decode(b"\xff\xd8\xff the file", "0", query={"beta": "robust"})
    assert request.images == (b"\xff\xd8\xff the file",)
    assert request.choices == (1.0,)
    assert not any(output.is_binary for output in request.outputs)


def test_outputs_are_all_in_json_by_default():
    image = base64_image(b"x")
    both = (RequestedOutput("logits"), RequestedOutput("probabilities"))
    assert decode(in_json(image)).outputs == both
    assert decode(in_json(image, outputs=[])).outputs == both
    binary = decode(in_json(image, parameters={"binary_data_output": True})).outputs
    assert binary == (RequestedOutput("logits", 0, True), RequestedOutput("probabilities", 0, True))


def test_each_output_chooses_binary_data_and_its_number_of_labels():
    outputs = [
        {"name": "probabilities", "parameters": {"classification": 3, "binary_data": False}},
        {"name": "logits"},
    ]
    got = decode(in_json(base64_image(b"x"), outputs=outputs, parameters={"binary_data_output": True})).outputs
    assert got == (RequestedOutput("probabilities", 3, False), RequestedOutput("logits", 0, True))


def test_id_and_timeout_are_read_and_parameters_of_known_clients_are_no_error():
    parameters = {"timeout": 250_000, "priority": 1, "headers": "x", "triton_enable_empty_final_response": True}
    request = decode(in_json(base64_image(b"x"), id="order-66", parameters=parameters))
    assert (request.id, request.timeout_us) == ("order-66", 250_000)
    assert decode(in_json(base64_image(b"x"), parameters={"timeout": 0})).timeout_us is None


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("empty", b""),
        ("JSON", b"{"),
        ("JSON", b"\xff\xfe"),
        ("must be a JSON object", b"[]"),
        ("inputs must be a list", b"{}"),
        ("inputs must be a list", b'{"inputs": {}}'),
        ("each of inputs", b'{"inputs": [1]}'),
        ("one of the inputs", b'{"inputs": []}'),
        ("no input 'picture'", in_json(base64_image(b"x", name="picture"))),
        ("no input None", in_json({})),
        ("datatype is BYTES", in_json(base64_image(b"x", datatype="UINT8"))),
        ("list of sizes", in_json(base64_image(b"x", shape="1"))),
        ("list of sizes", in_json(base64_image(b"x", shape=[-1]))),
        ("list of sizes", in_json(base64_image(b"x", shape=[True]))),
        ("list of sizes", in_json(base64_image(b"x", shape=[2**31]))),
        ("5 dimensions", in_json(base64_image(b"x", shape=[1] * 5))),
        ("must be \\[-1\\]", in_json(base64_image(b"x", b"y", shape=[1, 2]))),
        ("holds 2 elements, and the data has 1", in_json(base64_image(b"x", shape=[2]))),
        ("holds 1 elements, and the data has more", in_json(base64_image(b"x", b"y", shape=[1]))),
        ("the batch is empty: send 1 to 8", in_json({**ONE_IMAGE, "shape": [0], "data": []})),
        ("the batch is empty: send 1 to 8", in_json({**ONE_PIXELS, "shape": [0, 4, 4, 3], "data": []})),
        ("the batch is empty", in_json({**ONE_IMAGE, "shape": [0, 1], "data": []}, EMPTY_BETA)),
        ("the batch is empty", in_json({**ONE_PIXELS, "shape": [0, 4, 4, 3], "parameters": {"binary_data_size": 0}})),
        ("element 1 is not a base64 string", in_json({**ONE_IMAGE, "shape": [2], "data": ["aGk=", "not base64!"]})),
        ("9 images", in_json(base64_image(*[b"x"] * 9))),
        ("base64", in_json({**ONE_IMAGE, "data": ["not base64!"]})),
        ("base64", in_json({**ONE_IMAGE, "data": ["é"]})),
        ("base64", in_json({**ONE_IMAGE, "data": [5]})),
        ("neither a list as data", in_json(ONE_IMAGE)),
        ("neither a list as data", in_json({**ONE_IMAGE, "data": "aGk="})),
        ("must be \\[-1, 4, 4, 3\\]", in_json({**ONE_PIXELS, "shape": [1, 5, 5, 3], "data": [0] * 75})),
        ("unequal lengths", in_json({**ONE_PIXELS, "data": [[0], 1]})),
        ("whole numbers from 0 to 255", in_json({**ONE_PIXELS, "data": [256] * 48})),
        ("whole numbers from 0 to 255", in_json({**ONE_PIXELS, "data": [-1] * 48})),
        ("whole numbers from 0 to 255", in_json({**ONE_PIXELS, "data": [0.5] * 48})),
        ("whole numbers from 0 to 255", in_json({**ONE_PIXELS, "data": [10**30] * 48})),
        ("whole numbers from 0 to 255", in_json({**ONE_PIXELS, "data": ["1"] * 48})),
        ("more than once", in_json(base64_image(b"x"), base64_image(b"x"))),
        ("one of the inputs", in_json(base64_image(b"x"), {**ONE_PIXELS, "data": [0] * 48})),
        ("at most 4", in_json(*[base64_image(b"x")] * 5)),
        (
            "must be \\[1\\] or \\[1, 1\\]",
            in_json(base64_image(b"x"), {"name": "beta", "datatype": "FP32", "shape": [2], "data": [0, 1]}),
        ),
        ("no parameter 'Beta'", in_json(base64_image(b"x"), parameters={"Beta": 1})),
        ("must be a JSON object", in_json(base64_image(b"x"), parameters=[])),
        ("timeout is '5'", in_json(base64_image(b"x"), parameters={"timeout": "5"})),
        ("timeout is -1", in_json(base64_image(b"x"), parameters={"timeout": -1})),
        ("binary_data_output", in_json(base64_image(b"x"), parameters={"binary_data_output": "yes"})),
        ("id is not a string", in_json(base64_image(b"x"), id=5)),
        ("257 characters", in_json(base64_image(b"x"), id="x" * 257)),
        ("no output 'labels'", in_json(base64_image(b"x"), outputs=[{"name": "labels"}])),
        ("requested more than once", in_json(base64_image(b"x"), outputs=[{"name": "logits"}] * 2)),
        ("at most 2", in_json(base64_image(b"x"), outputs=[{"name": "logits"}] * 3)),
        (
            "classification is -1",
            in_json(base64_image(b"x"), outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
        ),
        (
            "binary_data is 1",
            in_json(base64_image(b"x"), outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]),
        ),
        ("shared memory", in_json(base64_image(b"x", parameters={"shared_memory_region": "r"}))),
    ],
)
def test_a_wrong_request_is_refused_by_name(words, body):
    refuses(words, body)


@pytest.mark.parametrize("header", ["-1", "1_0", " 1", "+5", "x", "", "9999", "9" * 5000, "٣"])
def test_a_length_that_is_none_or_beyond_the_body_is_refused(header):
    refuses("Inference-Header-Content-Length", in_json(base64_image(b"x")), header)


def test_the_binary_sizes_must_match_the_bytes_after_the_json():
    body, header = in_binary((ONE_IMAGE, framed(b"image")))
    refuses("bytes follow the JSON, and the inputs name", body + b"x", header)
    refuses("binary_data_size must be", body[:-1], header)
    for size in (True, -1, "9", 9.0, None):
        text = in_json({**ONE_IMAGE, "parameters": {"binary_data_size": size}})
        refuses("binary_data_size must be", text + framed(b"image"), str(len(text)))
    text = in_json(base64_image(b"x", parameters={"binary_data_size": 0}))
    refuses("in place of data", text, str(len(text)))


@pytest.mark.parametrize(
    "raw", [b"", b"\1", b"\1\0\0", b"\5\0\0\0abc", b"\xff\xff\xff\xff", framed(b"a", b"b"), framed(b"a") + b"\0"]
)
def test_bytes_elements_cut_short_or_too_many_are_refused(raw):
    refuses("input image", *in_binary((ONE_IMAGE, raw)))


def test_pixels_of_another_number_of_bytes_are_refused():
    refuses("48 bytes, and the data has 47", *in_binary((ONE_PIXELS, bytes(47))))


def test_json_is_limited_in_size_and_depth():
    with pytest.raises(InferRequestTooLargeError, match="binary"):
        decode(b" " * (MAX_JSON_BYTES + 1))
    refuses("JSON", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@given(body=st.binary(max_size=300), header=st.none() | st.integers(-1, 300).map(str) | st.text(max_size=5))
def test_any_bytes_parse_or_raise_documented_errors(body, header):
    try:
        assert decode(body, header).images
    except TureenError as error:
        assert oip_problem_type(error).status == 400


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))
names = st.sampled_from(["image", "pixels", "beta", "logits", "probabilities"])
heads = st.fixed_dictionaries(
    {"name": names, "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | leaves},
    optional={
        "shape": st.lists(st.integers(-1, 5), max_size=5) | values,
        "data": values,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "classification", "binary_data"]), st.integers(-1, 20) | values
        )
        | values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(heads, max_size=4) | values},
    optional={
        "id": values,
        "outputs": st.lists(heads, max_size=3) | values,
        "parameters": st.dictionaries(st.sampled_from(["beta", "timeout", "binary_data_output"]), values) | values,
    },
)


@given(request=requests, rest=st.binary(max_size=40))
def test_any_json_parses_or_raises_documented_errors(request, rest):
    text = json.dumps(request).encode()
    try:
        assert decode(text + rest, str(len(text))).images
    except TureenError as error:
        assert oip_problem_type(error).status == 400


def response(*outputs, id="7"):
    return InferResponse("digits", "v1", id, {"beta": 0.7, "beta_source": "request", "revision": 3}, outputs)


LOGITS = Tensor("logits", "FP32", (2, 3), np.arange(6, dtype=np.float32).reshape(2, 3) / 8)
LABELS = Tensor("probabilities", "BYTES", (2, 1), ["0.900000:3:Käse".encode(), b"1.000000:0:a"])


def test_a_response_in_json_has_no_length_header():
    body, headers = encode_response(
        response(LOGITS, LABELS), [RequestedOutput("logits"), RequestedOutput("probabilities", 1)]
    )
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body) == {
        "model_name": "digits",
        "model_version": "v1",
        "id": "7",
        "parameters": {"beta": 0.7, "beta_source": "request", "revision": 3},
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0, 0.125, 0.25, 0.375, 0.5, 0.625]},
            {
                "name": "probabilities",
                "datatype": "BYTES",
                "shape": [2, 1],
                "data": ["0.900000:3:Käse", "1.000000:0:a"],
            },
        ],
    }


def test_a_binary_response_has_its_data_behind_the_json_in_the_order_of_the_outputs():
    requested = [RequestedOutput("probabilities", 1, True), RequestedOutput("logits", 0, True)]
    body, headers = encode_response(response(LABELS, LOGITS, id=""), requested)
    length = int(headers["Inference-Header-Content-Length"])
    head, rest = json.loads(body[:length]), body[length:]
    assert "id" not in head
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert rest[: sizes[0]] == framed(*LABELS.data)
    np.testing.assert_array_equal(np.frombuffer(rest[sizes[0] :], "<f4").reshape(2, 3), LOGITS.data)
    assert sum(sizes) == len(rest)


def test_one_output_may_be_binary_and_the_other_json():
    body, headers = encode_response(
        response(LOGITS, LABELS), [RequestedOutput("logits", 0, True), RequestedOutput("probabilities")]
    )
    length = int(headers["Inference-Header-Content-Length"])
    logits, labels = json.loads(body[:length])["outputs"]
    assert "data" not in logits
    assert labels["data"] == ["0.900000:3:Käse", "1.000000:0:a"]
    assert body[length:] == LOGITS.data.tobytes()


def test_invalid_request_error_is_a_400_and_never_the_422_of_other_routes():
    assert oip_problem_type(InvalidRequestError("x")).status == 400
    assert oip_problem_type(InvalidBetaError("x")).status == 400
