"""An ONNX file's own words, read without the onnx package and without trusting them: what goes in and out, what is
inside, and which other files it would have a runtime open.

Walks the file's protobuf messages over a memoryview: copies nothing but names, follows no path, and ends within fixed
bounds whatever the bytes are. Knows nothing about bundles, and nothing of what a runtime makes of a graph.

Stricter than protobuf where two readers of one file could disagree: a known field of another wire type, or a single
value given twice, is an error here. Field numbers: onnx/onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict

from tureen.errors import GraphFileError

MAX_FIELDS: Final = 500_000  # fields of the messages walked, about a second; a ViT of six blocks has 3,300
MAX_DEPTH: Final = 100  # messages within messages; where protobuf's own readers end too
MAX_NAME_BYTES: Final = 1024  # of a name that is kept: a tensor's, an operator's, a domain's, a path

ORT_FORMAT = b"ORTM"  # from byte 4 on: ONNX Runtime then reads its own format, whatever the file is as protobuf
EXTERNAL_CONTEXT = "EPContext"  # a node of ONNX Runtime's that may name a compiled engine in another file

# onnx.TensorProto.DataType, as NumPy and ml_dtypes spell it
ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
FieldValue = int | memoryview | None  # of a field; None: a number of fixed width, which no field read here has

# The messages on the way to a tensor: what each field holds. "main graph" is the one whose inputs a runtime feeds.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "main graph", 8: "opset", 20: "training", 25: "function"},
    "main graph": {1: "node", 5: "initialiser", 11: "input", 12: "output", 15: "sparse initialiser"},
    "graph": {1: "node", 5: "initialiser", 15: "sparse initialiser"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse initialiser": {1: "initialiser", 2: "initialiser"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_OP_TYPE = 4  # of a node
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})  # a tensor's fields that hold its numbers
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor


class TensorInfo(BaseModel):
    """An input or output of the graph."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: list[int | str] | None  # a name where a dimension is dynamic, "?" where nothing is said; None: no shape

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({'no shape' if self.shape is None else ', '.join(map(str, self.shape))})"


class GraphFile(BaseModel):
    """What an ONNX file says of itself."""

    model_config = ConfigDict(frozen=True)

    opsets: dict[str, int]  # version by domain; ONNX's own domain is ""
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    nodes: dict[str, int]  # how many of each operator, those of subgraphs and functions included; the most first
    weights_bytes: int  # that the initialisers' numbers take in the file
    external_files: list[str]  # that tensors or nodes refer to; "" for one that names none


def read_graph_file(data: bytes) -> GraphFile:
    """What the ONNX file with these bytes says of itself; raises GraphFileError for anything that is not one."""
    if data[4:8] == ORT_FORMAT:
        raise GraphFileError("it is in ONNX Runtime's own format")
    walk = _GraphReader()
    walk.message("model", memoryview(data), depth=1)
    if not walk.opsets or not walk.inputs or not walk.outputs:
        raise GraphFileError("it has no opset, no input or no output")
    return GraphFile(
        opsets=walk.opsets,
        inputs=walk.inputs,
        outputs=walk.outputs,
        nodes=dict(walk.nodes.most_common()),
        weights_bytes=walk.weights_bytes,
        external_files=list(walk.external_files),
    )


class _GraphReader:
    """One pass over a file, and what was met on it."""

    def __init__(self) -> None:
        self.opsets: dict[str, int] = {}
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.nodes: Counter[str] = Counter()
        self.weights_bytes = 0
        self.external_files: dict[str, None] = {}  # in the order met
        self._fields_left = MAX_FIELDS

    def message(self, kind: str, data: memoryview, depth: int) -> None:
        """Walk one message of `_CHILDREN` and all that lies in it."""
        if depth > MAX_DEPTH:
            raise GraphFileError(f"its messages are nested more than {MAX_DEPTH} deep")
        for number, value in self._fields(data):
            if kind == "node" and number == _OP_TYPE:
                self._count_node(_as_text(value))
            child = _CHILDREN[kind].get(number)
            if child is None:
                continue
            inner = _as_bytes(value)
            if child in _CHILDREN:
                self.message(child, inner, depth + 1)
            elif child == "opset":
                self._opset(inner)
            elif child == "input":
                self.inputs.append(self._tensor_info(inner))
            elif child == "output":
                self.outputs.append(self._tensor_info(inner))
            else:
                size = self._tensor(inner)
                self.weights_bytes += size if child == "initialiser" else 0

    def _count_node(self, op_type: str) -> None:
        self.nodes[op_type] += 1
        if op_type == EXTERNAL_CONTEXT:
            self.external_files[""] = None

    def _opset(self, data: memoryview) -> None:
        fields = self._single(data)
        domain, version = _as_text(fields.get(1, b"")), _as_int(fields.get(2, 0))
        domain = "" if domain == "ai.onnx" else domain
        if domain in self.opsets:
            raise GraphFileError(f"it imports two opsets of the domain {domain!r}")
        self.opsets[domain] = version

    def _tensor(self, data: memoryview) -> int:
        """Bytes of the tensor's numbers in this file; notes where they are in another."""
        size, is_external, locations = 0, False, list[str]()
        for number, value in self._fields(data):
            if number in _TENSOR_DATA:
                size += len(value) if isinstance(value, memoryview) else 8
            elif number == _DATA_LOCATION:
                is_external |= _as_int(value) != 0
            elif number == _EXTERNAL_DATA:
                is_external = True
                entry = self._single(_as_bytes(value))
                if _as_text(entry.get(1, b"")) == "location":
                    locations.append(_as_text(entry.get(2, b"")))
        if is_external:
            self.external_files.update(dict.fromkeys(locations or [""]))
        return size

    def _tensor_info(self, data: memoryview) -> TensorInfo:
        value_info = self._single(data)
        kinds = self._single(_as_bytes(value_info.get(2, b"")))
        name = _as_text(value_info.get(1, b""))
        if 1 not in kinds:
            return TensorInfo(name=name, dtype="not a tensor", shape=None)
        tensor = self._single(_as_bytes(kinds[1]))
        element = _as_int(tensor.get(1, 0))
        shape = (
            [self._dimension(_as_bytes(v)) for n, v in self._fields(_as_bytes(tensor[2])) if n == 1]
            if 2 in tensor
            else None
        )
        return TensorInfo(name=name, dtype=ELEMENT_TYPES.get(element, f"element type {element}"), shape=shape)

    def _dimension(self, data: memoryview) -> int | str:
        fields = self._single(data)
        if 1 in fields and 2 in fields:
            raise GraphFileError("a dimension has both a size and a name")
        return _as_int(fields[1]) if 1 in fields else _as_text(fields.get(2, b"")) or "?"

    def _single(self, data: memoryview) -> dict[int, FieldValue]:
        """The fields of a message in which each is given at most once."""
        fields: dict[int, FieldValue] = {}
        for number, value in self._fields(data):
            if number in fields:
                raise GraphFileError("a value is given twice")
            fields[number] = value
        return fields

    def _fields(self, data: memoryview) -> Iterator[tuple[int, FieldValue]]:
        """Number and value of each field of a message."""
        at = 0
        while at < len(data):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise GraphFileError(f"it has more than {MAX_FIELDS:,} fields")
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >= 1 << 32:
                raise GraphFileError("it is no protobuf message")
            if wire == _VARINT:
                value, at = _varint(data, at)
                yield number, value
                continue
            if wire == _BYTES:
                size, at = _varint(data, at)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise GraphFileError("it is no protobuf message")
            if size > len(data) - at:
                raise GraphFileError("it is cut short")
            yield number, data[at : at + size] if wire == _BYTES else None
            at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer of 64 bits at that place, seven bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise GraphFileError("it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise GraphFileError("it is no protobuf message")
    if value >= 1 << 64:
        raise GraphFileError("it is no protobuf message")
    return value, at


def _as_int(value: FieldValue | bytes) -> int:
    if not isinstance(value, int):
        raise GraphFileError("something else stands where a number belongs")
    return value


def _as_bytes(value: FieldValue | bytes) -> memoryview:
    if value is None or isinstance(value, int):
        raise GraphFileError("a number stands where a message belongs")
    return memoryview(value)


def _as_text(value: FieldValue | bytes) -> str:
    """A short name; what is no UTF-8 in it is marked, for whoever reads the name."""
    data = _as_bytes(value)
    if len(data) > MAX_NAME_BYTES:
        raise GraphFileError(f"a name in it is longer than {MAX_NAME_BYTES:,} bytes")
    return str(data, "utf-8", errors="replace")
