"""An inference request and its answer as messages of gRPC; what a request means is `serve.oip.request`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.errors import InvalidRequestError
from serve.oip.codec import InferAnswer
from serve.oip.proto import inference_pb2 as pb
from serve.oip.request import (
    OUTPUTS,
    InferRequest,
    RequestLimits,
    WantedOutput,
    check_counts,
    input_head,
    understand,
    wanted_output,
)
from serve.oip.tensors import Tensor, raw_data, tensor_from_raw, tensor_from_values

_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}


def decode_message(message: pb.ModelInferRequest, limits: RequestLimits) -> InferRequest:
    """The request in a message; raises InvalidRequestError or InvalidBetaError."""
    check_counts(len(message.inputs), len(message.outputs))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(
            f"raw_input_contents holds {len(raw):,} tensors for {len(message.inputs)} inputs: give it for all or none"
        )
    if raw and any(told.contents.ByteSize() for told in message.inputs):
        raise InvalidRequestError("an input has contents beside raw_input_contents: send the data in one of them")
    tensors = []
    for index, told in enumerate(message.inputs):
        head = input_head(told.name, told.datatype, list(told.shape))
        if raw:
            tensors.append(tensor_from_raw(head, memoryview(raw[index])))
        else:
            tensors.append(tensor_from_values(head, list(getattr(told.contents, _CONTENTS[head.datatype]))))
    outputs = [wanted_output(told.name, _parameters(told.parameters), is_binary=True) for told in message.outputs]
    return understand(
        id=message.id,
        inputs=tensors,
        outputs=outputs or [WantedOutput(name, is_binary=True) for name in OUTPUTS],
        parameters=_parameters(message.parameters),
        limits=limits,
    )


def encode_message(answer: InferAnswer) -> pb.ModelInferResponse:
    """The answer as a message, its tensors all in raw_output_contents, as Triton sends them."""
    return pb.ModelInferResponse(
        model_name=answer.model_name,
        model_version=answer.model_version,
        id=answer.id,
        parameters={name: _parameter(value) for name, value in answer.parameters.items()},
        outputs=[_output(tensor) for tensor in answer.outputs],
        raw_output_contents=[raw_data(tensor) for tensor in answer.outputs],
    )


def _output(tensor: Tensor) -> pb.ModelInferResponse.InferOutputTensor:
    return pb.ModelInferResponse.InferOutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _parameters(told: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    parameters = {}
    for name, parameter in told.items():
        choice = parameter.WhichOneof("parameter_choice")
        parameters[name] = getattr(parameter, choice) if choice else None
    return parameters


def _parameter(value: float | int | str) -> pb.InferParameter:
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(int64_param=value)
