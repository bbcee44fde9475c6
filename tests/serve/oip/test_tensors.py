"""Tensors as bytes and as values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidRequestError
from serve.oip.tensors import Tensor, TensorMetadata, raw_data, tensor_from_raw, tensor_from_values

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(shape=shapes, seed=st.integers(0, 2**32 - 1), datatype=st.sampled_from(["UINT8", "FP32"]))
def test_an_array_is_the_same_after_its_bytes_and_after_its_values(shape, seed, datatype):
    array = np.random.default_rng(seed).integers(0, 256, shape).astype({"UINT8": "u1", "FP32": "<f4"}[datatype])
    raw = raw_data(Tensor("x", datatype, shape, array))
    assert raw == array.tobytes()
    metadata = TensorMetadata("x", datatype, shape)
    for tensor in (
        tensor_from_raw(metadata, memoryview(raw)),
        tensor_from_values(metadata, array.ravel().tolist()),
    ):
        assert tensor.data.dtype == array.dtype
        np.testing.assert_array_equal(tensor.data, array)


@given(elements=st.lists(st.binary(max_size=10), max_size=5))
def test_elements_of_bytes_are_the_same_after_their_framing(elements):
    shape = (len(elements),)
    raw = raw_data(Tensor("x", "BYTES", shape, elements))
    assert tensor_from_raw(TensorMetadata("x", "BYTES", shape), memoryview(raw)).data == elements


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [1.5, -2, 3, 4]),
        ("FP32", [[1.5, -2], [3, 4]]),
        ("UINT8", [0, 255, 3, 4]),
        ("UINT8", [[0, 255], [3, 4]]),
        ("BYTES", ["YQ==", "Yg", b"c", "data:;base64,ZA"]),
    ],
)
def test_values_are_flat_or_nested(datatype, values):
    tensor = tensor_from_values(TensorMetadata("x", datatype, (2, 2)), values)
    if datatype == "BYTES":
        assert tensor.data == [b"a", b"b", b"c", b"d"]
    else:
        np.testing.assert_array_equal(tensor.data, np.array(values).reshape(2, 2))


@pytest.mark.parametrize(
    ("datatype", "values", "words"),
    [
        ("FP32", [1, 2, 3], "holds 4 elements, and the data has 3"),
        ("FP32", [1, 2, 3, 4, 5], "the data has more"),
        ("FP32", [[1, 2], [3]], "unequal lengths"),
        ("FP32", ["1", "2", "3", "4"], "must be numbers"),
        ("FP32", [True, False, True, True], "must be numbers"),
        ("UINT8", [0, 1, 2, 256], "from 0 to 255"),
        ("UINT8", [0, 1, 2, 0.5], "from 0 to 255"),
        ("BYTES", ["YQ==", "Yg==", "%", "ZA=="], "element 2 is not a base64 string"),
        ("BYTES", ["YQ=="], "holds 4 elements, and the data has 1"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype, values, words):
    with pytest.raises(InvalidRequestError, match=words):
        tensor_from_values(TensorMetadata("x", datatype, (2, 2)), values)


@pytest.mark.parametrize(
    ("datatype", "raw", "words"),
    [
        ("UINT8", bytes(3), "needs 4 bytes, and the data has 3"),
        ("FP32", bytes(17), "needs 16 bytes, and the data has 17"),
        ("BYTES", b"\5\0\0\0abc", "the data ends within an element"),
        ("BYTES", b"\1\0", "the data ends within an element"),
        ("BYTES", b"\1\0\0\0a" * 3, "the data has 3"),
        ("BYTES", b"\1\0\0\0a" * 5, "the data has more"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(datatype, raw, words):
    with pytest.raises(InvalidRequestError, match=words):
        tensor_from_raw(TensorMetadata("x", datatype, (2, 2)), memoryview(raw))


def test_a_number_beyond_float32_is_infinite():
    tensor = tensor_from_values(TensorMetadata("x", "FP32", (1,)), [1e300])
    assert np.isinf(tensor.data).all()
