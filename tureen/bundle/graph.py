"""Reads the description of an untrusted ONNX file without the onnx package.

The description has the inputs, the outputs, the operators, and the other files to which the ONNX file refers. The
parser reads the protobuf messages in a memoryview. It copies only names, opens no other file, and stops after
MAX_FIELDS fields. Knows nothing about bundles or runtimes.

Two parsers could read an ambiguous file differently, so this parser is stricter than protobuf. A known field of another
wire type, or a second value of a field that has one value, is an error. Field numbers: onnx/onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict

from tureen.errors import GraphFileError

MAX_FIELDS: Final = 500_000  # fields of the messages that are parsed, about a second; a ViT of six blocks has 3,300
MAX_DEPTH: Final = 100  # nested messages; protobuf's own parsers have the same limit
MAX_NAME_BYTES: Final = 1024  # of the name of a tensor, an operator or a domain, and of a path

ORT_FORMAT = b"ORTM"  # at byte 4: ONNX Runtime then reads its own format and not protobuf
EXTERNAL_CONTEXT = "EPContext"  # a node type of ONNX Runtime that may name a compiled engine in another file

# onnx.TensorProto.DataType, as NumPy and ml_dtypes spell it
ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
FieldValue = int | memoryview | None  # None: a number of fixed width; no field that is used has one

# The messages that contain tensors: field number to what the field holds. "main graph" has the inputs of the model.
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
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})  # fields of a tensor that hold its numbers
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor


class TensorInfo(BaseModel):
    """The name, dtype and shape of an input or output of an ONNX graph."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: list[int | str] | None  # a dynamic dimension is its name, an unspecified one "?"; None: no shape

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({'no shape' if self.shape is None else ', '.join(map(str, self.shape))})"


class GraphFile(BaseModel):
    """The description of an ONNX file: its tensors, operators, weights and references to other files."""

    model_config = ConfigDict(frozen=True)

    opsets: dict[str, int]  # version by domain; ONNX's own domain is ""
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    nodes: dict[str, int]  # count by operator, including subgraphs and functions; most frequent first
    weights_bytes: int  # size of the initialisers in the file
    external_files: list[str]  # paths that tensors or nodes refer to; "" for a reference without a path


def read_graph_file(data: bytes) -> GraphFile:
    """Returns the description of the ONNX file in `data`.

    Raises GraphFileError if `data` is not an ONNX file, is ambiguous, has more than MAX_FIELDS fields, or is nested
    more than MAX_DEPTH deep.
    """
    if data[4:8] == ORT_FORMAT:
        raise GraphFileError("it is in ONNX Runtime's own format")
    reader = _GraphReader()
    reader.read_message("model", memoryview(data), depth=1)
    if not reader.opsets or not reader.inputs or not reader.outputs:
        raise GraphFileError("it has no opset, no input or no output")
    return GraphFile(
        opsets=reader.opsets,
        inputs=reader.inputs,
        outputs=reader.outputs,
        nodes=dict(reader.nodes.most_common()),
        weights_bytes=reader.weights_bytes,
        external_files=list(reader.external_files),
    )


class _GraphReader:
    """Parses one ONNX file and collects the description of it. All methods raise GraphFileError for an invalid file."""

    def __init__(self) -> None:
        self.opsets: dict[str, int] = {}
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.nodes: Counter[str] = Counter()
        self.weights_bytes = 0
        self.external_files: dict[str, None] = {}  # an ordered set
        self._fields_left = MAX_FIELDS

    def read_message(self, kind: str, data: memoryview, depth: int) -> None:
        """Parses the protobuf message in `data` and all messages in it. Adds their content to the description.

        kind: the key of the message in `_CHILDREN`, such as "node". depth: the level of nesting of the message, from 1
        for the whole file to MAX_DEPTH.
        """
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
                self.read_message(child, inner, depth + 1)
            elif child == "opset":
                self._read_opset(inner)
            elif child == "input":
                self.inputs.append(self._read_tensor_info(inner))
            elif child == "output":
                self.outputs.append(self._read_tensor_info(inner))
            else:
                size = self._read_tensor(inner)
                self.weights_bytes += size if child == "initialiser" else 0

    def _count_node(self, op_type: str) -> None:
        self.nodes[op_type] += 1
        if op_type == EXTERNAL_CONTEXT:
            self.external_files[""] = None

    def _read_opset(self, data: memoryview) -> None:
        fields = self._unique_fields(data)
        domain, version = _as_text(fields.get(1, b"")), _as_int(fields.get(2, 0))
        domain = "" if domain == "ai.onnx" else domain
        if domain in self.opsets:
            raise GraphFileError(f"it imports two opsets of the domain {domain!r}")
        self.opsets[domain] = version

    def _read_tensor(self, data: memoryview) -> int:
        """Returns the size in bytes of the numbers of a tensor that are in this ONNX file.

        If the tensor refers to another file for its numbers, adds that file to `external_files`.
        """
        size, is_external, locations = 0, False, list[str]()
        for number, value in self._fields(data):
            if number in _TENSOR_DATA:
                size += len(value) if isinstance(value, memoryview) else 8
            elif number == _DATA_LOCATION:
                is_external |= _as_int(value) != 0
            elif number == _EXTERNAL_DATA:
                is_external = True
                entry = self._unique_fields(_as_bytes(value))
                if _as_text(entry.get(1, b"")) == "location":
                    locations.append(_as_text(entry.get(2, b"")))
        if is_external:
            self.external_files.update(dict.fromkeys(locations or [""]))
        return size

    def _read_tensor_info(self, data: memoryview) -> TensorInfo:
        value_info = self._unique_fields(data)
        kinds = self._unique_fields(_as_bytes(value_info.get(2, b"")))
        name = _as_text(value_info.get(1, b""))
        if 1 not in kinds:
            return TensorInfo(name=name, dtype="not a tensor", shape=None)
        tensor = self._unique_fields(_as_bytes(kinds[1]))
        element = _as_int(tensor.get(1, 0))
        shape = (
            [self._read_dimension(_as_bytes(v)) for n, v in self._fields(_as_bytes(tensor[2])) if n == 1]
            if 2 in tensor
            else None
        )
        return TensorInfo(name=name, dtype=ELEMENT_TYPES.get(element, f"element type {element}"), shape=shape)

    def _read_dimension(self, data: memoryview) -> int | str:
        fields = self._unique_fields(data)
        if 1 in fields and 2 in fields:
            raise GraphFileError("a dimension has both a size and a name")
        return _as_int(fields[1]) if 1 in fields else _as_text(fields.get(2, b"")) or "?"

    def _unique_fields(self, data: memoryview) -> dict[int, FieldValue]:
        """Returns the value of each field of a message, by field number. A field that occurs twice is an error."""
        fields: dict[int, FieldValue] = {}
        for number, value in self._fields(data):
            if number in fields:
                raise GraphFileError("a value is given twice")
            fields[number] = value
        return fields

    def _fields(self, data: memoryview) -> Iterator[tuple[int, FieldValue]]:
        """Yields the number and the value of each field of a message. The value of a field of fixed size is None."""
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
    """Returns the varint at index `at`, and the index after it. A varint is an unsigned integer with 7 bits a byte.

    Raises GraphFileError if the data ends within the varint, or if the integer has more than 64 bits.
    """
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
        raise GraphFileError("a field that must hold a number holds something else")
    return value


def _as_bytes(value: FieldValue | bytes) -> memoryview:
    if value is None or isinstance(value, int):
        raise GraphFileError("a field that must hold a message holds a number")
    return memoryview(value)


def _as_text(value: FieldValue | bytes) -> str:
    """Returns the text of a field, with U+FFFD for bytes that are not UTF-8.

    Raises GraphFileError if the field is a number or has more than MAX_NAME_BYTES bytes.
    """
    data = _as_bytes(value)
    if len(data) > MAX_NAME_BYTES:
        raise GraphFileError(f"a name in it is longer than {MAX_NAME_BYTES:,} bytes")
    return str(data, "utf-8", errors="replace")
