"""Decodes the HTTP body of an inference request, and encodes the body of its response.

A body is JSON, optionally followed by binary data (the protocol's binary tensor extension). The header
`Inference-Header-Content-Length` is the length of the JSON in bytes. The binary data is that of every tensor with the
parameter `binary_data_size`, in order. A length of 0 means that the body is one encoded image without JSON. In JSON,
each element of a BYTES input is base64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import InferRequestTooLargeError, InvalidRequestError
from serve.http.json_body import parse_json
from serve.oip.request import (
    IMAGE,
    OUTPUTS,
    InferRequest,
    RequestedOutput,
    RequestLimits,
    check_counts,
    make_request,
    parse_input_metadata,
    parse_requested_output,
)
from serve.oip.tensors import BYTES, Tensor, TensorMetadata, raw_data, tensor_from_raw, tensor_from_values

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 4 * 2**20  # parsed in 0.1 s if it holds numbers, in 0.5 s if it holds empty lists, the slowest case
MAX_JSON_DEPTH = 16  # pixels are nested ten deep


@dataclass(frozen=True)
class InferResponse:
    """The response to an inference request, before it is encoded for HTTP or gRPC."""

    model_name: str
    model_version: str
    id: str  # of the request
    parameters: dict[str, float | int | str]  # of the response, such as β and revision
    outputs: tuple[Tensor, ...]  # the requested ones


def decode_request(
    body: bytes, header_length: str | None, *, query: Mapping[str, str] = {}, limits: RequestLimits
) -> InferRequest:
    """Returns the inference request in a body.

    header_length: value of the header `Inference-Header-Content-Length`; None if absent. query: beta or strength, if
    the URL has one.
    Raises InvalidParameterError if the JSON cannot be parsed, InferRequestTooLargeError if it has more than
    MAX_JSON_BYTES, and InvalidRequestError if the header or another part of the body is invalid. Raises the errors of
    `serve.oip.request.make_request`.
    """
    json_bytes = _json_length(header_length, len(body))
    if json_bytes == 0:
        image = Tensor(IMAGE, BYTES, (1,), [body])
        all_outputs = [RequestedOutput(name) for name in OUTPUTS]
        return make_request(inputs=[image], outputs=all_outputs, parameters={}, query=query, limits=limits)
    if json_bytes > MAX_JSON_BYTES:
        raise InferRequestTooLargeError("JSON", MAX_JSON_BYTES, "send the tensors as binary data")
    fields = _object(parse_json(body[:json_bytes], max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH), "the request")
    request_id = fields.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequestError("the id is not a string")
    parameters = _object(fields.get("parameters", {}), "parameters")
    is_binary = parameters.get("binary_data_output", False)
    if not isinstance(is_binary, bool):
        raise InvalidRequestError("binary_data_output is neither true nor false")
    inputs = _objects(fields.get("inputs"), "inputs")
    outputs = _objects(fields.get("outputs", []), "outputs")
    check_counts(len(inputs), len(outputs))
    return make_request(
        id=request_id,
        inputs=_inputs(inputs, memoryview(body)[json_bytes:]),
        outputs=_outputs(outputs, is_binary=is_binary),
        parameters=parameters,
        query=query,
        limits=limits,
    )


def encode_response(
    response: InferResponse, requested_outputs: Sequence[RequestedOutput]
) -> tuple[bytes, dict[str, str]]:
    """Returns the body of a response, and the headers that describe the body.

    The headers are Content-Type and, if the body has binary data, the length of the JSON. requested_outputs: one for
    each output of the response, in the same order.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for tensor, requested in zip(response.outputs, requested_outputs, strict=True):
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if requested.is_binary:
            binary.append(raw_data(tensor))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = _values(tensor)
        outputs.append(output)
    fields: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        fields["id"] = response.id
    fields |= {"parameters": response.parameters, "outputs": outputs}
    text = json.dumps(fields, separators=(",", ":")).encode()
    if not binary:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join((text, *binary)), headers


def _json_length(header: str | None, body_length: int) -> int:
    if header is None:
        if not body_length:
            raise InvalidRequestError("the body is empty")
        return body_length
    # int() also accepts "1_0", " 1" and non-ASCII digits. The length bounds the time that int() takes.
    if not (header.isascii() and header.isdecimal() and len(header) <= 12) or int(header) > body_length:
        raise InvalidRequestError(
            f"{HEADER_LENGTH} is {header[:40]!r}: send the length of the JSON in bytes, at most the {body_length:,} of "
            "the body, or 0 if the body is one image"
        )
    return int(header)


def _inputs(inputs: Sequence[dict[str, Any]], binary: memoryview) -> list[Tensor]:
    """Returns the input tensors. inputs: the JSON object of each. binary: the bytes after the JSON.

    Raises InvalidRequestError if an input is invalid, or if a byte of `binary` belongs to no input.
    """
    tensors: list[Tensor] = []
    used = 0
    for fields in inputs:
        metadata = parse_input_metadata(fields.get("name"), fields.get("datatype"), fields.get("shape"))
        parameters = _object(fields.get("parameters", {}), f"the parameters of input {metadata.name}")
        _refuse_shared_memory(f"input {metadata.name}", parameters)
        if "binary_data_size" not in parameters:
            tensors.append(tensor_from_values(metadata, _data(metadata, fields)))
            continue
        size = parameters["binary_data_size"]
        if "data" in fields or type(size) is not int or not 0 <= size <= len(binary) - used:
            raise InvalidRequestError(
                f"input {metadata.name}: binary_data_size must be a number of bytes that follow the JSON, in place of "
                "data"
            )
        tensors.append(tensor_from_raw(metadata, binary[used : used + size]))
        used += size
    if used != len(binary):
        raise InvalidRequestError(f"{len(binary):,} bytes follow the JSON, and the inputs name {used:,} of them")
    return tensors


def _data(metadata: TensorMetadata, fields: dict[str, Any]) -> list[Any]:
    data = fields.get("data")
    if not isinstance(data, list):
        raise InvalidRequestError(f"input {metadata.name} has neither a list as data nor a binary_data_size")
    return data


def _outputs(outputs: Sequence[dict[str, Any]], *, is_binary: bool) -> list[RequestedOutput]:
    """Returns the requested outputs, or all outputs if the request names none.

    outputs: the JSON object of each requested output. is_binary: the request's parameter binary_data_output. Raises
    InvalidRequestError if an output is invalid.
    """
    requested = []
    for fields in outputs:
        parameters = _object(fields.get("parameters", {}), "the parameters of an output")
        _refuse_shared_memory("an output", parameters)
        requested.append(parse_requested_output(fields.get("name"), parameters, is_binary=is_binary))
    return requested or [RequestedOutput(name, is_binary=is_binary) for name in OUTPUTS]


def _refuse_shared_memory(owner: str, parameters: dict[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise InvalidRequestError(
            f"{owner} uses shared memory, which this server does not support: send the data itself"
        )


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be a JSON object")
    return value


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} must be a list of JSON objects")
    return [_object(entry, f"each of {name}") for entry in value]


def _values(tensor: Tensor) -> list[Any]:
    """Returns the values of a tensor as a flat, row-major list for JSON. BYTES become strings."""
    if isinstance(tensor.data, list):
        return [element.decode() for element in tensor.data]
    values: list[Any] = tensor.data.ravel().tolist()
    return values
