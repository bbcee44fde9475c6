"""Decodes the gRPC message of an inference request, and encodes the message of its response.

`serve.oip.request` validates the tensors and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.errors import InvalidRequestError
from serve.oip.codec import InferResponse
from serve.oip.proto import inference_pb2 as pb
from serve.oip.request import (
    OUTPUTS,
    InferRequest,
    RequestedOutput,
    RequestLimits,
    check_counts,
    make_request,
    parse_input_metadata,
    parse_requested_output,
)
from serve.oip.tensors import Tensor, raw_data, tensor_from_raw, tensor_from_values

_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}


def decode_message(message: pb.ModelInferRequest, limits: RequestLimits) -> InferRequest:
    """Returns the inference request in a gRPC message.

    Raises InvalidRequestError if a tensor or a requested output is invalid, or if there are too many of them. Raises it
    if raw_input_contents lacks the data of an input, or is given together with contents. Raises the errors of
    `serve.oip.request.make_request`.
    """
    check_counts(len(message.inputs), len(message.outputs))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw):,} tensors for {len(message.inputs)} inputs: send it for all or none"
        )
    if raw and any(tensor.contents.ByteSize() for tensor in message.inputs):
        raise InvalidRequestError("an input has both contents and raw_input_contents: send the data in one of them")
    inputs = []
    for index, tensor in enumerate(message.inputs):
        metadata = parse_input_metadata(tensor.name, tensor.datatype, list(tensor.shape))
        if raw:
            inputs.append(tensor_from_raw(metadata, memoryview(raw[index])))
        else:
            inputs.append(tensor_from_values(metadata, list(getattr(tensor.contents, _CONTENTS[metadata.datatype]))))
    outputs = [
        parse_requested_output(output.name, _decode_parameters(output.parameters), is_binary=True)
        for output in message.outputs
    ]
    return make_request(
        id=message.id,
        inputs=inputs,
        outputs=outputs or [RequestedOutput(name, is_binary=True) for name in OUTPUTS],
        parameters=_decode_parameters(message.parameters),
        limits=limits,
    )


def encode_message(response: InferResponse) -> pb.ModelInferResponse:
    """Returns the gRPC message of a response. The data of all tensors is in raw_output_contents, as in Triton."""
    return pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        parameters={name: _encode_parameter(value) for name, value in response.parameters.items()},
        outputs=[_encode_output(tensor) for tensor in response.outputs],
        raw_output_contents=[raw_data(tensor) for tensor in response.outputs],
    )


def _encode_output(tensor: Tensor) -> pb.ModelInferResponse.InferOutputTensor:
    return pb.ModelInferResponse.InferOutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _decode_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Returns the value of each parameter by its name, or None for a parameter without a value."""
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, field) if field else None
    return values


def _encode_parameter(value: float | int | str) -> pb.InferParameter:
    if isinstance(value, bool):  # before int, which bool is a subclass of
        return pb.InferParameter(bool_param=value)
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(int64_param=value)
