"""Tensors on the wire: little-endian bytes or values, and what they must be to become arrays.

Knows datatypes and shapes; not which tensors a model has.
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
class TensorHead:
    """What a request says of a tensor besides its data."""

    name: str
    datatype: str  # "BYTES", or a key of DTYPES
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Tensor(TensorHead):
    """data: the array of that shape; of BYTES, the elements in row-major order."""

    data: NDArray[Any] | list[bytes]


def tensor_from_raw(head: TensorHead, raw: memoryview) -> Tensor:
    """The tensor whose binary data is `raw`; raises InvalidRequestError where their sizes differ."""
    if head.datatype == BYTES:
        return _tensor(head, list(_elements(head, raw)))
    dtype = DTYPES[head.datatype]
    if len(raw) != head.size * dtype.itemsize:
        raise InvalidRequestError(
            f"input {head.name}: shape {list(head.shape)} of {head.datatype} is {head.size * dtype.itemsize:,} bytes, "
            f"and there are {len(raw):,}"
        )
    return _tensor(head, np.frombuffer(raw, dtype).reshape(head.shape))


def tensor_from_values(head: TensorHead, values: Sequence[Any]) -> Tensor:
    """The tensor of values, nested as the shape is or flat: numbers; of BYTES, bytes or base64 text (as JSON has it).

    Raises InvalidRequestError.
    """
    if head.datatype == BYTES:
        elements = [_bytes_of(head, index, value) for index, value in enumerate(_flat(values))]
        if len(elements) != head.size:
            raise _wrong_count(head, len(elements))
        return _tensor(head, elements)
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidRequestError(f"input {head.name}: the data is nested unevenly") from None
    if array.size != head.size:
        raise _wrong_count(head, array.size)
    is_whole = head.datatype == "UINT8"
    if (array.size and array.dtype.kind not in ("iu" if is_whole else "iuf")) or (
        is_whole and array.size and not 0 <= array.min() <= array.max() <= 255
    ):
        wanted = "whole numbers from 0 to 255" if is_whole else "numbers"
        raise InvalidRequestError(f"input {head.name}: the data is not all {wanted}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which whoever reads the tensor refuses
        return _tensor(head, array.astype(DTYPES[head.datatype]).reshape(head.shape))


def raw_data(tensor: Tensor) -> bytes:
    """The tensor's binary data: row-major, little-endian; each element of BYTES after its length in four bytes."""
    if isinstance(tensor.data, list):
        return b"".join(len(element).to_bytes(_LENGTH_BYTES, "little") + element for element in tensor.data)
    return tensor.data.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def _tensor(head: TensorHead, data: NDArray[Any] | list[bytes]) -> Tensor:
    return Tensor(head.name, head.datatype, head.shape, data)


def _elements(head: TensorHead, raw: memoryview) -> Iterator[bytes]:
    position = count = 0
    while position < len(raw):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or position > len(raw):
            raise InvalidRequestError(f"input {head.name}: an element's length points beyond the data's end")
        count += 1
        if count > head.size:
            break
        yield bytes(raw[start:position])
    if count != head.size:
        raise _wrong_count(head, count)


def _bytes_of(head: TensorHead, index: int, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return decode_base64(value)
    raise InvalidRequestError(
        f"input {head.name}: element {index} is not a base64 text. Elements of BYTES are base64 in JSON, or binary data"
    )


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _wrong_count(head: TensorHead, count: int) -> InvalidRequestError:
    held = f"{count:,}" if count <= head.size else "more"
    return InvalidRequestError(f"input {head.name}: shape {list(head.shape)} holds {head.size:,} elements, not {held}")
