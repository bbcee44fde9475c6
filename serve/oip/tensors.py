"""Converts tensors between NumPy arrays and the bytes or JSON values of the Open Inference Protocol.

Knows datatypes and shapes, but not which tensors a model has.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidRequestError
from serve.http.json_body import decode_base64

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}

_LENGTH_BYTES = 4  # before each element of a BYTES tensor


@dataclass(frozen=True)
class TensorMetadata:
    """The name, datatype and shape of a tensor."""

    name: str
    datatype: str  # "BYTES", or a key of DTYPES
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Tensor(TensorMetadata):
    """A tensor with its data: an array of the tensor's shape, or for BYTES a list of elements in row-major order."""

    data: NDArray[Any] | list[bytes]


def tensor_from_raw(metadata: TensorMetadata, raw: memoryview) -> Tensor:
    """Returns the tensor with the binary data `raw`: row-major and little-endian.

    In a BYTES tensor, the length of each element, a number of four bytes, comes before the element. Raises
    InvalidRequestError if the number of elements does not match the shape, or if the data ends within an element.
    """
    if metadata.datatype == BYTES:
        return _tensor(metadata, list(_elements(metadata, raw)))
    dtype = DTYPES[metadata.datatype]
    if len(raw) != metadata.size * dtype.itemsize:
        raise InvalidRequestError(
            f"input {metadata.name}: the shape {list(metadata.shape)} of {metadata.datatype} needs "
            f"{metadata.size * dtype.itemsize:,} bytes, and the data has {len(raw):,}"
        )
    return _tensor(metadata, np.frombuffer(raw, dtype).reshape(metadata.shape))


def tensor_from_values(metadata: TensorMetadata, values: Sequence[Any]) -> Tensor:
    """Returns the tensor with these values. They are a flat list, or nested lists of equal lengths.

    A value is a number; in a BYTES tensor it is bytes or a base64 string. Raises InvalidRequestError if a value is of
    another type, or if a value of UINT8 is outside 0–255. Raises it if nested lists have unequal lengths, or if the
    number of values does not match the shape.
    """
    if metadata.datatype == BYTES:
        elements = [_bytes_of(metadata, index, value) for index, value in enumerate(_flat(values))]
        if len(elements) != metadata.size:
            raise _wrong_count(metadata, len(elements))
        return _tensor(metadata, elements)
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidRequestError(f"input {metadata.name}: the lists of the data have unequal lengths") from None
    if array.size != metadata.size:
        raise _wrong_count(metadata, array.size)
    is_whole = metadata.datatype == "UINT8"
    if (array.size and array.dtype.kind not in ("iu" if is_whole else "iuf")) or (
        is_whole and array.size and not 0 <= array.min() <= array.max() <= 255
    ):
        valid = "whole numbers from 0 to 255" if is_whole else "numbers"
        raise InvalidRequestError(f"input {metadata.name}: the data must be {valid}")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and the caller refuses it
        return _tensor(metadata, array.astype(DTYPES[metadata.datatype]).reshape(metadata.shape))


def raw_data(tensor: Tensor) -> bytes:
    """Returns the binary data of a tensor, row-major and little-endian.

    For a BYTES tensor, the length of each element, a number of four bytes, comes before the element.
    """
    if isinstance(tensor.data, list):
        return b"".join(len(element).to_bytes(_LENGTH_BYTES, "little") + element for element in tensor.data)
    return tensor.data.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def _tensor(metadata: TensorMetadata, data: NDArray[Any] | list[bytes]) -> Tensor:
    return Tensor(metadata.name, metadata.datatype, metadata.shape, data)


def _elements(metadata: TensorMetadata, raw: memoryview) -> Iterator[bytes]:
    position = count = 0
    while position < len(raw):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or position > len(raw):
            raise InvalidRequestError(f"input {metadata.name}: the data ends within an element")
        count += 1
        if count > metadata.size:
            break
        yield bytes(raw[start:position])
    if count != metadata.size:
        raise _wrong_count(metadata, count)


def _bytes_of(metadata: TensorMetadata, index: int, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return decode_base64(value)
    raise InvalidRequestError(
        f"input {metadata.name}: element {index} is not a base64 string: send base64 in JSON, or binary data"
    )


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _wrong_count(metadata: TensorMetadata, count: int) -> InvalidRequestError:
    actual = f"{count:,}" if count <= metadata.size else "more"
    return InvalidRequestError(
        f"input {metadata.name}: the shape {list(metadata.shape)} holds {metadata.size:,} elements, and the data has "
        f"{actual}"
    )
