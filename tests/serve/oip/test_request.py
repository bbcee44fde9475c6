"""The validation of an inference request, for HTTP and gRPC alike."""

import numpy as np
import pytest

from serve.errors import InvalidRequestError
from serve.oip.request import (
    InferRequest,
    RequestedOutput,
    RequestLimits,
    check_counts,
    make_request,
    parse_input_metadata,
    parse_requested_output,
)
from serve.oip.tensors import Tensor, TensorMetadata
from tureen.errors import InvalidBetaError, InvalidMixError, InvalidStrengthError
from tureen.tokens import Mix, Strength

LIMITS = RequestLimits(image_size=4, max_images=3)
LOGITS = RequestedOutput("logits")


def images(count=1):
    return Tensor("image", "BYTES", (count, 1), [b"image"] * count)


def betas(*values):
    return Tensor("beta", "FP32", (len(values), 1), np.array(values, np.float32))


def weights(*rows):
    return Tensor("weights", "FP32", (len(rows), len(rows[0])), np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("tensor", "parameters", "said"),
    [
        (weights((1, 1)), {}, "needs the parameter tokens"),
        (weights((1, 1)), {"tokens": 1}, "needs the parameter tokens"),
        (weights((1, 1)), {"tokens": "fog"}, r"must be \[1, 1\]"),
        (weights((1, 1), (1, 1)), {"tokens": "fog,haze"}, r"must be \[1, 2\]"),
        (weights((1, 1)), {"tokens": "fog,fog"}, "a name twice"),
        (weights((1,) * 10), {"tokens": ",".join(f"t{n}" for n in range(10))}, "too many names"),
        (weights((1, 1)), {"tokens": "fog,haze", "mix": "fog:1"}, "exclude each other"),
        (weights((1, 1)), {"tokens": "fog,haze", "token": "fog"}, "exclude each other"),
        (weights((1, 1)), {"tokens": "fog,haze", "normalize": 1}, "normalize"),
        (None, {"tokens": "fog"}, "belongs to the input weights"),
    ],
)
def test_wrong_weights_are_refused(tensor, parameters, said):
    inputs = (images(),) if tensor is None else (images(), tensor)
    with pytest.raises(InvalidRequestError, match=said):
        request(*inputs, parameters=parameters)


@pytest.mark.parametrize("row", [(0, 0), (-1, 2), (float("nan"), 1), (float("inf"), 1), (1, 1000)])
def test_weights_that_are_no_mix_are_refused(row):
    with pytest.raises(InvalidMixError):
        request(images(), weights(row), parameters={"tokens": "fog,haze"})


def request(*inputs, outputs=(LOGITS,), parameters=None, **options):
    return make_request(inputs=inputs, outputs=outputs, parameters=parameters or {}, limits=LIMITS, **options)


@pytest.mark.parametrize(
    ("inputs", "options", "expected"),
    [
        ((images(2),), {}, (None, None)),
        ((images(2),), {"query": {"beta": "robust"}}, (1.0, 1.0)),
        ((images(2),), {"parameters": {"beta": 0.5}}, (0.5, 0.5)),
        ((images(2), betas(0.25, 0.7)), {}, (0.25, 0.7)),
        ((images(2),), {"parameters": {"policy": "uploads"}}, (None, None)),
        ((images(2),), {"parameters": {"strength": 0.5}}, (Strength(0.5), Strength(0.5))),
        ((images(),), {"query": {"strength": "0.5"}}, (Strength(0.5),)),
        (
            (images(2), weights((0.7, 0.3), (0, 2))),
            {"parameters": {"tokens": "fog, robust"}},
            (Mix((("fog", 0.7), ("robust", 0.3))), 1.0),
        ),
        (
            (images(), weights((0.5, 2))),
            {"parameters": {"tokens": "fog,haze", "normalize": False}},
            (Mix((("fog", 0.5), ("haze", 2.0))),),
        ),
    ],
)
def test_beta_comes_from_the_tensor_the_parameter_or_the_query(inputs, options, expected):
    assert request(*inputs, **options).choices == expected


def test_a_request_holds_its_parameters():
    parameters = {"timeout": 250_000, "policy": "uploads", "triton_x": 1, "priority": 2}
    assert request(images(), id="order-66", parameters=parameters) == InferRequest(
        "order-66", (b"image",), (None,), (LOGITS,), 250_000, "uploads"
    )


def test_a_timeout_of_zero_is_none():
    assert request(images(), parameters={"timeout": 0}).timeout_us is None


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ((), {}, "one of the inputs image and pixels"),
        ((images(), images()), {}, "more than once"),
        ((images(0),), {}, "the batch is empty: send 1 to 3"),
        ((images(4),), {}, "has 4 images: send 1 to 3"),
        ((Tensor("image", "BYTES", (1, 2), [b"a", b"b"]),), {}, r"must be \[-1\] or \[-1, 1\]"),
        ((Tensor("image", "BYTES", (), [b"a"]),), {}, "must be"),
        ((Tensor("pixels", "UINT8", (1, 5, 5, 3), np.zeros((1, 5, 5, 3), np.uint8)),), {}, r"must be \[-1, 4, 4, 3\]"),
        ((images(2), betas(0.5)), {}, r"for 2 images it must be \[2\] or \[2, 1\]"),
        ((images(),), {"parameters": {"Beta": 1}}, "no parameter 'Beta'"),
        ((images(),), {"parameters": {"policy": 5}}, "policy is 5: give the name"),
        ((images(),), {"parameters": {"policy": "a", "beta": 1}}, "give one of them"),
        ((images(),), {"parameters": {"policy": "a"}, "query": {"beta": "1"}}, "give one of them"),
        ((images(),), {"parameters": {"policy": "a", "strength": 1}}, "policy and strength exclude each other"),
        ((images(),), {"parameters": {"beta": 1, "strength": 1}}, "beta and strength exclude each other"),
        ((images(), betas(0.5)), {"parameters": {"strength": 1}}, "beta and strength exclude each other"),
        ((images(),), {"parameters": {"beta": 1}, "query": {"strength": "1"}}, "give one of them"),
        ((images(),), {"query": {"beta": "1", "strength": "1"}}, "give one of them"),
        ((images(), betas(0.1)), {"parameters": {"beta": 0.9}}, "beta is given more than once: give one of them"),
        ((images(), betas(0.1)), {"query": {"beta": "0.9"}}, "beta is given more than once"),
        (
            (images(), betas(0.1)),
            {"query": {"beta": "0.1"}, "parameters": {"beta": 0.1}},
            "beta is given more than once",
        ),
        ((images(),), {"query": {"beta": "1"}, "parameters": {"beta": 0.5}}, "beta is given more than once"),
        (
            (images(),),
            {"query": {"strength": "1"}, "parameters": {"strength": 0.5}},
            "strength is given more than once",
        ),
        ((images(),), {"parameters": {"timeout": True}}, "timeout is True"),
        ((images(),), {"parameters": {"timeout": 2**63}}, "whole number of microseconds"),
        ((images(),), {"id": "x" * 257}, "257 characters: give at most 256"),
        ((images(),), {"outputs": (LOGITS, LOGITS)}, "requested more than once"),
    ],
)
def test_a_wrong_request_is_refused(inputs, options, words):
    with pytest.raises(InvalidRequestError, match=words):
        request(*inputs, **options)


@pytest.mark.parametrize("beta", [2, -1, True, None, "x", [0.5], 10**400, float("nan")])
def test_a_wrong_beta_is_refused(beta):
    with pytest.raises(InvalidBetaError):
        request(images(), parameters={"beta": beta})


def test_metadata_of_a_known_input_is_accepted():
    assert parse_input_metadata("pixels", "UINT8", [1, 4, 4, 3]) == TensorMetadata("pixels", "UINT8", (1, 4, 4, 3))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (("picture", "UINT8", [1]), "no input 'picture': use image, pixels, beta"),
        ((None, "UINT8", [1]), "no input None"),
        (("pixels", "FP32", [1]), "its datatype is UINT8"),
        (("pixels", "UINT8", "1"), "not a list of sizes"),
        (("pixels", "UINT8", [-1]), "not a list of sizes"),
        (("pixels", "UINT8", [True]), "not a list of sizes"),
        (("pixels", "UINT8", [2**31]), "not a list of sizes"),
        (("pixels", "UINT8", [1] * 5), "5 dimensions: give at most 4"),
    ],
)
def test_wrong_metadata_of_an_input_is_refused(metadata, words):
    with pytest.raises(InvalidRequestError, match=words):
        parse_input_metadata(*metadata)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, RequestedOutput("logits", 0, True)),
        ({"binary_data": False}, RequestedOutput("logits", 0, False)),
        ({"classification": 3}, RequestedOutput("logits", 3, True)),
    ],
)
def test_a_requested_output_has_the_parameters_of_its_extensions(parameters, expected):
    assert parse_requested_output("logits", parameters, is_binary=True) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("labels", {}),
        (None, {}),
        ("logits", {"classification": -1}),
        ("logits", {"classification": True}),
        ("logits", {"binary_data": 1}),
    ],
)
def test_a_wrong_requested_output_is_refused(name, parameters):
    with pytest.raises(InvalidRequestError):
        parse_requested_output(name, parameters, is_binary=True)


@pytest.mark.parametrize(("inputs", "outputs", "words"), [(5, 0, "5 inputs: send at most 4"), (0, 3, "at most 2")])
def test_more_tensors_than_the_protocol_names_are_refused_before_they_are_parsed(inputs, outputs, words):
    check_counts(4, 2)
    with pytest.raises(InvalidRequestError, match=words):
        check_counts(inputs, outputs)


@pytest.mark.parametrize("strength", ["robust", 2, -1, None, True, [], float("nan"), 10**400])
def test_an_invalid_strength_is_refused(strength):
    with pytest.raises(InvalidStrengthError):
        request(images(), parameters={"strength": strength})
