"""What an inference request means: its images, a β for each, and the outputs it wants. Neither HTTP nor gRPC.

    image          BYTES (B) or (B, 1)    encoded JPEG, PNG or WebP images, of any size
    pixels         UINT8 (B, H, W, 3)     in their place: RGB, at the model's size
    beta           FP32 (B) or (B, 1)     optional: one β an image
    logits         FP32 (B, K)
    probabilities  FP32 (B, K)            their softmax

Which β: the tensor's, else the request parameter's, else the query's, else the default of the service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import InvalidRequestError
from serve.oip.tensors import BYTES, Tensor, TensorHead
from tureen.errors import InvalidBetaError
from tureen.preprocess import Pixels
from tureen.tokens import parse_beta

IMAGE, PIXELS, BETA = "image", "pixels", "beta"
POLICY = "policy"
LOGITS, PROBABILITIES = "logits", "probabilities"
INPUT_DATATYPES = {IMAGE: BYTES, PIXELS: "UINT8", BETA: "FP32"}
OUTPUTS = (LOGITS, PROBABILITIES)

# What clients send of their own accord and what says nothing here. Any other parameter is refused, since a misspelt
# `beta` must not silently mean the default.
IGNORED_PARAMETERS = frozenset({"binary_data_output", "headers", "priority"})
IGNORED_PREFIX = "triton_"

MAX_ID_CHARACTERS = 256


@dataclass(frozen=True)
class RequestLimits:
    """What a request may hold."""

    image_size: int  # H and W of pixels
    max_images: int


@dataclass(frozen=True)
class WantedOutput:
    """One output; where classification is not 0, that many of its highest values with their labels in its place."""

    name: str
    classification: int = 0
    is_binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """A request understood."""

    id: str
    images: tuple[bytes | Pixels, ...]
    betas: tuple[float | None, ...]  # one an image; None: the default
    outputs: tuple[WantedOutput, ...]
    timeout_us: int | None
    policy: str | None = None  # that the operator keeps, in the place of β


def input_head(name: object, datatype: object, shape: object) -> TensorHead:
    """The head of an input tensor, its name, datatype and dimensions checked; raises InvalidRequestError."""
    if not isinstance(name, str) or name not in INPUT_DATATYPES:
        raise InvalidRequestError(f"there is no input {_shown(name)}: use {', '.join(INPUT_DATATYPES)}")
    if datatype != INPUT_DATATYPES[name]:
        raise InvalidRequestError(f"input {name} is {_shown(datatype)}; its datatype is {INPUT_DATATYPES[name]}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise InvalidRequestError(f"input {name}: the shape is not a list of sizes")
    if len(shape) > 4:
        raise InvalidRequestError(f"input {name}: the shape has {len(shape)} dimensions, at most 4 are meant")
    return TensorHead(name, datatype, tuple(shape))


def wanted_output(name: object, parameters: Mapping[str, Any], *, is_binary: bool) -> WantedOutput:
    """One requested output; is_binary: where its parameters do not say. Raises InvalidRequestError."""
    if not isinstance(name, str) or name not in OUTPUTS:
        raise InvalidRequestError(f"there is no output {_shown(name)}: use {', '.join(OUTPUTS)}")
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidRequestError(f"output {name}: classification is {_shown(count)}; give a number of labels")
    binary = parameters.get("binary_data", is_binary)
    if not isinstance(binary, bool):
        raise InvalidRequestError(f"output {name}: binary_data is {_shown(binary)}; give true or false")
    return WantedOutput(name, count, binary)


def check_counts(inputs: int, outputs: int) -> None:
    """Refuses, with InvalidRequestError and before any is looked at, more inputs or outputs than there are."""
    for count, names, what in ((inputs, INPUT_DATATYPES, "inputs"), (outputs, OUTPUTS, "outputs")):
        if count > len(names):
            raise InvalidRequestError(f"the request has {count:,} {what}, at most {len(names)} are meant")


def understand(
    *,
    id: str = "",
    inputs: Sequence[Tensor],
    outputs: Sequence[WantedOutput],
    parameters: Mapping[str, Any],
    query_beta: str | None = None,
    limits: RequestLimits,
) -> InferRequest:
    """The request that these tensors and parameters make; raises InvalidRequestError or InvalidBetaError."""
    if len(id) > MAX_ID_CHARACTERS:
        raise InvalidRequestError(f"the id has {len(id):,} characters, the limit is {MAX_ID_CHARACTERS}")
    for name in parameters:
        if name not in (BETA, POLICY, "timeout", *IGNORED_PARAMETERS) and not name.startswith(IGNORED_PREFIX):
            raise InvalidRequestError(f"there is no parameter {_shown(name)}: use beta, policy and timeout")
    tensors = _by_name(inputs)
    images = _images(tensors, limits)
    if BETA in tensors:
        betas: tuple[float | None, ...] = _tensor_betas(tensors[BETA], len(images))
    elif BETA in parameters:
        betas = (_parameter_beta(parameters[BETA]),) * len(images)
    else:
        betas = (None if query_beta is None else parse_beta(query_beta),) * len(images)
    policy = parameters.get(POLICY)
    if policy is not None and not isinstance(policy, str):
        raise InvalidRequestError(f"policy is {_shown(policy)}; give the name of one")
    if policy is not None and (BETA in tensors or BETA in parameters or query_beta is not None):
        raise InvalidRequestError("beta and policy both choose: give one of them")
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise InvalidRequestError("an output is asked for more than once")
    return InferRequest(id, images, betas, tuple(outputs), _timeout(parameters.get("timeout", 0)), policy)


def _by_name(inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    tensors = {tensor.name: tensor for tensor in inputs}
    if len(tensors) < len(inputs):
        raise InvalidRequestError("an input is given more than once")
    if (IMAGE in tensors) == (PIXELS in tensors):
        raise InvalidRequestError(f"give one of the inputs {IMAGE} and {PIXELS}")
    return tensors


def _images(tensors: Mapping[str, Tensor], limits: RequestLimits) -> tuple[bytes | Pixels, ...]:
    tensor = tensors[IMAGE] if IMAGE in tensors else tensors[PIXELS]
    size = limits.image_size
    row = (size, size, 3)
    is_right = tensor.shape[1:] in ((), (1,)) if tensor.name == IMAGE else tensor.shape[1:] == row
    if not tensor.shape or not is_right:
        wanted = "[-1] or [-1, 1]" if tensor.name == IMAGE else [-1, *row]
        raise InvalidRequestError(f"input {tensor.name} has shape {list(tensor.shape)}; it must be {wanted}")
    if not tensor.shape[0]:
        raise InvalidRequestError(f"the batch is empty: send 1 to {limits.max_images} images")
    if tensor.shape[0] > limits.max_images:
        raise InvalidRequestError(f"the request holds {tensor.shape[0]:,} images; send 1 to {limits.max_images}")
    return tuple(tensor.data)


def _tensor_betas(tensor: Tensor, count: int) -> tuple[float, ...]:
    if tensor.shape not in ((count,), (count, 1)):
        raise InvalidRequestError(
            f"input {BETA} has shape {list(tensor.shape)}; for {count} images it must be [{count}, 1]"
        )
    assert not isinstance(tensor.data, list)
    # The shortest decimal of a float32: a β of 0.7 is then the same 0.7 as in a query, and is told as such.
    return tuple(parse_beta(str(beta)) for beta in tensor.data.reshape(-1))


def _parameter_beta(value: Any) -> float:
    if isinstance(value, int) and not 0 <= value <= 1:  # it may have more digits than a float holds
        raise InvalidBetaError(value)
    return parse_beta(value)


def _timeout(value: object) -> int | None:
    """Microseconds; None for 0, which is the protocol's word for none."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidRequestError(f"timeout is {_shown(value)}; give a whole number of microseconds")
    return value or None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
