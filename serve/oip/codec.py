"""The HTTP body of an inference request and of its answer: JSON, and the binary tensors that may follow it.

The binary tensor extension: the header `Inference-Header-Content-Length` says how many bytes are JSON; behind them lies
the data of every tensor that has the parameter `binary_data_size`, in order. A length of 0 means that there is no JSON,
and that the body is one encoded image. In JSON, each element of a BYTES input is base64 text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import InferRequestTooLargeError, InvalidRequestError
from serve.http.json_body import parse_json
from serve.oip.request import (
    IMAGE,
    OUTPUTS,
    InferRequest,
    RequestLimits,
    WantedOutput,
    check_counts,
    input_head,
    understand,
    wanted_output,
)
from serve.oip.tensors import BYTES, Tensor, TensorHead, raw_data, tensor_from_raw, tensor_from_values

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 4 * 2**20  # numbers fill it in a tenth of a second, the costliest text (empty lists) in half a second
MAX_JSON_DEPTH = 16  # pixels lie ten deep


@dataclass(frozen=True)
class InferAnswer:
    """What goes back to the client, whichever way it came."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, float | int | str]
    outputs: tuple[Tensor, ...]


def decode_request(
    body: bytes, header_length: str | None, *, query_beta: str | None = None, limits: RequestLimits
) -> InferRequest:
    """The request in a body; header_length: the header's text, None where it is missing.

    Raises InvalidRequestError, InferRequestTooLargeError, InvalidBetaError, or what `parse_json` raises.
    """
    json_bytes = _json_length(header_length, len(body))
    if json_bytes == 0:
        image = Tensor(IMAGE, BYTES, (1,), [body])
        all_outputs = [WantedOutput(name) for name in OUTPUTS]
        return understand(inputs=[image], outputs=all_outputs, parameters={}, query_beta=query_beta, limits=limits)
    if json_bytes > MAX_JSON_BYTES:
        raise InferRequestTooLargeError("JSON", MAX_JSON_BYTES, "send the tensors as binary data")
    head = _object(parse_json(body[:json_bytes], max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH), "the request")
    request_id = head.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequestError("the id is not a text")
    parameters = _object(head.get("parameters", {}), "parameters")
    is_binary = parameters.get("binary_data_output", False)
    if not isinstance(is_binary, bool):
        raise InvalidRequestError("binary_data_output is neither true nor false")
    inputs, outputs = _objects(head.get("inputs"), "inputs"), _objects(head.get("outputs", []), "outputs")
    check_counts(len(inputs), len(outputs))
    return understand(
        id=request_id,
        inputs=_inputs(inputs, memoryview(body)[json_bytes:]),
        outputs=_outputs(outputs, is_binary=is_binary),
        parameters=parameters,
        query_beta=query_beta,
        limits=limits,
    )


def encode_answer(answer: InferAnswer, wanted: Sequence[WantedOutput]) -> tuple[bytes, dict[str, str]]:
    """The body, and its headers: the media type, and the length of the JSON where binary data follows."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for tensor, output in zip(answer.outputs, wanted, strict=True):
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if output.is_binary:
            binary.append(raw_data(tensor))
            told["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            told["data"] = _values(tensor)
        outputs.append(told)
    head: dict[str, Any] = {"model_name": answer.model_name, "model_version": answer.model_version}
    if answer.id:
        head["id"] = answer.id
    text = json.dumps({**head, "parameters": answer.parameters, "outputs": outputs}, separators=(",", ":")).encode()
    if not binary:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join((text, *binary)), headers


def _json_length(header: str | None, body_length: int) -> int:
    if header is None:
        if not body_length:
            raise InvalidRequestError("the body is empty")
        return body_length
    # int() also reads "1_0", " 1" and non-ASCII digits; the length keeps a huge number from being computed.
    if not (header.isascii() and header.isdecimal() and len(header) <= 12) or int(header) > body_length:
        raise InvalidRequestError(
            f"{HEADER_LENGTH} is {header[:40]!r}; it must be the length of the JSON within the body's "
            f"{body_length:,} bytes, or 0 where the body is one image"
        )
    return int(header)


def _inputs(told: Sequence[dict[str, Any]], rest: memoryview) -> list[Tensor]:
    """The tensors of the JSON, those of binary data from the bytes behind it, which must be used up."""
    tensors: list[Tensor] = []
    used = 0
    for each in told:
        head = input_head(each.get("name"), each.get("datatype"), each.get("shape"))
        parameters = _object(each.get("parameters", {}), f"the parameters of input {head.name}")
        _refuse_shared_memory(head.name, parameters)
        if "binary_data_size" not in parameters:
            tensors.append(tensor_from_values(head, _data(head, each)))
            continue
        size = parameters["binary_data_size"]
        if "data" in each or type(size) is not int or not 0 <= size <= len(rest) - used:
            raise InvalidRequestError(
                f"input {head.name}: binary_data_size must be a number of bytes that follow the JSON, in place of data"
            )
        tensors.append(tensor_from_raw(head, rest[used : used + size]))
        used += size
    if used != len(rest):
        raise InvalidRequestError(f"{len(rest):,} bytes follow the JSON, and the inputs name {used:,} of them")
    return tensors


def _data(head: TensorHead, told: dict[str, Any]) -> list[Any]:
    data = told.get("data")
    if not isinstance(data, list):
        raise InvalidRequestError(f"input {head.name} has neither a list as data nor a binary_data_size")
    return data


def _outputs(told: Sequence[dict[str, Any]], *, is_binary: bool) -> list[WantedOutput]:
    outputs = []
    for each in told:
        parameters = _object(each.get("parameters", {}), "the parameters of an output")
        _refuse_shared_memory("of an output", parameters)
        outputs.append(wanted_output(each.get("name"), parameters, is_binary=is_binary))
    return outputs or [WantedOutput(name, is_binary=is_binary) for name in OUTPUTS]


def _refuse_shared_memory(what: str, parameters: dict[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise InvalidRequestError(f"{what}: shared memory is not offered here, send the data itself")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} must be a JSON object")
    return value


def _objects(value: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{what} must be a list of JSON objects")
    return [_object(each, f"each of {what}") for each in value]


def _values(tensor: Tensor) -> list[Any]:
    """The tensor's values for JSON, flat and row-major."""
    if isinstance(tensor.data, list):
        return [element.decode() for element in tensor.data]
    values: list[Any] = tensor.data.ravel().tolist()
    return values
