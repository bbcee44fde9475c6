"""Validates an inference request of the Open Inference Protocol: images, the β of each, and requested outputs.

    image          BYTES (B) or (B, 1)    encoded JPEG, PNG or WebP images, of any size
    pixels         UINT8 (B, H, W, 3)     instead of image: RGB, at the model's size
    beta           FP32 (B) or (B, 1)     optional: one β for each image
    weights        FP32 (B, T)            optional: one mix for each image, of the T tokens in the parameter tokens
    logits         FP32 (B, K)
    probabilities  FP32 (B, K)            softmax of the logits, each row divided by the temperature of its β

The β of an image comes from the tensor beta, a parameter of the request, or the query. Without these it comes from the
operator's settings. A parameter or the query may give a strength in place of β. A request that gives β or strength in
two of these places is refused. The parameters token, mix and normalize choose tokens by name, as for /classify. The
parameter tokens has the names of the columns of weights, such as "clean,fog".

Knows nothing about HTTP and gRPC: `serve.oip.codec` and `serve.oip.grpc_messages` decode their messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import InvalidRequestError
from serve.oip.tensors import BYTES, Tensor, TensorMetadata
from tureen.errors import InvalidBetaError
from tureen.preprocess import Pixels
from tureen.tokens import (
    MAX_MIX_TOKENS,
    GivenChoice,
    Strength,
    TokenChoice,
    parse_beta,
    parse_mix,
    parse_strength,
)

IMAGE, PIXELS, BETA, WEIGHTS = "image", "pixels", "beta", "weights"
STRENGTH = "strength"
TOKEN, MIX, NORMALIZE, TOKENS = "token", "mix", "normalize", "tokens"
POLICY = "policy"
LOGITS, PROBABILITIES = "logits", "probabilities"
INPUT_DATATYPES = {IMAGE: BYTES, PIXELS: "UINT8", BETA: "FP32", WEIGHTS: "FP32"}
OUTPUTS = (LOGITS, PROBABILITIES)

# Client libraries add these parameters, and this server ignores them. Any other unknown parameter is an error: a
# misspelt `beta` must not be ignored.
IGNORED_PARAMETERS = frozenset({"binary_data_output", "headers", "priority"})
IGNORED_PREFIX = "triton_"
PARAMETERS = frozenset({BETA, STRENGTH, TOKEN, MIX, NORMALIZE, TOKENS, POLICY, "timeout"})

MAX_ID_CHARACTERS = 256
MAX_NAME_CHARACTERS = 66  # of a token, with the separator and two spaces


@dataclass(frozen=True)
class RequestLimits:
    """The limits of an inference request, which depend on the model and the settings."""

    image_size: int  # H and W of pixels
    max_images: int  # in one request


@dataclass(frozen=True)
class RequestedOutput:
    """One requested output.

    classification: 0 to return all K values; N to return the N highest values with their labels. is_binary: whether
    HTTP returns the output as binary data after the JSON.
    """

    name: str
    classification: int = 0
    is_binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """A validated inference request. timeout_us: in microseconds; None if the request has no timeout itself."""

    id: str  # chosen by the client; may be empty
    images: tuple[bytes | Pixels, ...]  # encoded, or pixels uint8 (H, W, 3) of the model's size
    choices: tuple[GivenChoice | None, ...]  # one for each image; None: the default
    outputs: tuple[RequestedOutput, ...]
    timeout_us: int | None
    policy: str | None = None  # name of a policy in the operator's settings; excludes β


def parse_input_metadata(name: object, datatype: object, shape: object) -> TensorMetadata:
    """Returns the name, datatype and shape of an input, validated.

    Raises InvalidRequestError if no input has this name, if the input has another datatype, or if the shape is not a
    list of at most 4 sizes.
    """
    if not isinstance(name, str) or name not in INPUT_DATATYPES:
        raise InvalidRequestError(f"there is no input {_short(name)}: use {', '.join(INPUT_DATATYPES)}")
    if datatype != INPUT_DATATYPES[name]:
        raise InvalidRequestError(
            f"input {name} has the datatype {_short(datatype)}: its datatype is {INPUT_DATATYPES[name]}"
        )
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise InvalidRequestError(f"input {name}: the shape is not a list of sizes, such as [1, 1]")
    if len(shape) > 4:
        raise InvalidRequestError(f"input {name}: the shape has {len(shape)} dimensions: give at most 4")
    return TensorMetadata(name, datatype, tuple(shape))


def parse_requested_output(name: object, parameters: Mapping[str, Any], *, is_binary: bool) -> RequestedOutput:
    """Returns one requested output, validated. is_binary: the value if `parameters` has no binary_data.

    Raises InvalidRequestError if no output has this name, or if a parameter has an invalid value.
    """
    if not isinstance(name, str) or name not in OUTPUTS:
        raise InvalidRequestError(f"there is no output {_short(name)}: use {', '.join(OUTPUTS)}")
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidRequestError(f"output {name}: classification is {_short(count)}: give a number of labels")
    binary = parameters.get("binary_data", is_binary)
    if not isinstance(binary, bool):
        raise InvalidRequestError(f"output {name}: binary_data is {_short(binary)}: give true or false")
    return RequestedOutput(name, count, binary)


def check_counts(inputs: int, outputs: int) -> None:
    """Raises InvalidRequestError if a request has more inputs or outputs than a model has.

    Called before the inputs and outputs are parsed.
    """
    for count, names, kind in ((inputs, INPUT_DATATYPES, "inputs"), (outputs, OUTPUTS, "outputs")):
        if count > len(names):
            raise InvalidRequestError(f"the request has {count:,} {kind}: send at most {len(names)}")


def make_request(
    *,
    id: str = "",
    inputs: Sequence[Tensor],
    outputs: Sequence[RequestedOutput],
    parameters: Mapping[str, Any],
    query: Mapping[str, str] = {},
    limits: RequestLimits,
) -> InferRequest:
    """Returns the request with these fields, validated. query: beta or strength, if the URL has one.

    Raises InvalidBetaError, InvalidStrengthError or InvalidMixError for an invalid choice. Raises InvalidRequestError
    if the id is too long, or if a tensor or a parameter is missing, unknown, repeated or invalid. Raises it if the
    request has two of β, strength, mix, weights and policy, or β or strength in two places.
    """
    if len(id) > MAX_ID_CHARACTERS:
        raise InvalidRequestError(f"the id has {len(id):,} characters: give at most {MAX_ID_CHARACTERS}")
    for name in parameters:
        if name not in PARAMETERS | IGNORED_PARAMETERS and not name.startswith(IGNORED_PREFIX):
            raise InvalidRequestError(f"there is no parameter {_short(name)}: use {', '.join(sorted(PARAMETERS))}")
    tensors = _by_name(inputs)
    images = _images(tensors, limits)
    policy = parameters.get(POLICY)
    if policy is not None and not isinstance(policy, str):
        raise InvalidRequestError(f"policy is {_short(policy)}: give the name of a policy")
    given = [name for name in (*tensors, *parameters, *query) if name in (BETA, STRENGTH, MIX, WEIGHTS)]
    if policy is not None:
        given.append(POLICY)
    if TOKEN in parameters and not {MIX, WEIGHTS, POLICY}.isdisjoint(given):
        given.append(TOKEN)
    if len(set(given)) > 1:
        raise InvalidRequestError(f"{' and '.join(sorted(set(given)))} exclude each other: give one of them")
    if len(given) > 1:
        raise InvalidRequestError(f"{given[0]} is given more than once: give one of them")
    choices = _choices(tensors, parameters, query, len(images))
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise InvalidRequestError("an output is requested more than once")
    return InferRequest(id, images, choices, tuple(outputs), _timeout(parameters.get("timeout", 0)), policy)


def _by_name(inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    tensors = {tensor.name: tensor for tensor in inputs}
    if len(tensors) < len(inputs):
        raise InvalidRequestError("an input is given more than once")
    if (IMAGE in tensors) == (PIXELS in tensors):
        raise InvalidRequestError(f"give one of the inputs {IMAGE} and {PIXELS}, and not both")
    return tensors


def _images(tensors: Mapping[str, Tensor], limits: RequestLimits) -> tuple[bytes | Pixels, ...]:
    tensor = tensors[IMAGE] if IMAGE in tensors else tensors[PIXELS]
    size = limits.image_size
    row = (size, size, 3)
    is_valid = tensor.shape[1:] in ((), (1,)) if tensor.name == IMAGE else tensor.shape[1:] == row
    if not tensor.shape or not is_valid:
        valid = "[-1] or [-1, 1]" if tensor.name == IMAGE else [-1, *row]
        raise InvalidRequestError(f"input {tensor.name} has the shape {list(tensor.shape)}: it must be {valid}")
    if not tensor.shape[0]:
        raise InvalidRequestError(f"the batch is empty: send 1 to {limits.max_images} images")
    if tensor.shape[0] > limits.max_images:
        raise InvalidRequestError(f"the request has {tensor.shape[0]:,} images: send 1 to {limits.max_images}")
    return tuple(tensor.data)


def _tensor_betas(tensor: Tensor, count: int) -> tuple[float, ...]:
    if tensor.shape not in ((count,), (count, 1)):
        raise InvalidRequestError(
            f"input {BETA} has the shape {list(tensor.shape)}: for {count} images it must be [{count}] or [{count}, 1]"
        )
    assert not isinstance(tensor.data, list)
    # str() of a float32 is its shortest decimal, so that 0.7 is the same β as 0.7 in a query.
    return tuple(parse_beta(str(beta)) for beta in tensor.data.reshape(-1))


def _weights(tensor: Tensor, names: object, count: int, *, normalize: bool) -> tuple[GivenChoice, ...]:
    """Returns the mix of each of `count` images. names: the parameter tokens, the names of the columns of `tensor`."""
    if not isinstance(names, str):
        raise InvalidRequestError(f"input {WEIGHTS} needs the parameter {TOKENS}, a text such as clean,fog,robust")
    columns = [name.strip() for name in names[: MAX_MIX_TOKENS * MAX_NAME_CHARACTERS].split(",")]
    if len(columns) > MAX_MIX_TOKENS or len(set(columns)) < len(columns):
        raise InvalidRequestError(f"{TOKENS} has too many names, or a name twice: give at most {MAX_MIX_TOKENS} names")
    if tensor.shape != (count, len(columns)):
        raise InvalidRequestError(
            f"input {WEIGHTS} has the shape {list(tensor.shape)}: for {count} images and {len(columns)} tokens it must "
            f"be [{count}, {len(columns)}]"
        )
    assert not isinstance(tensor.data, list)
    # str() of a float32 is its shortest decimal, so that 0.7 is the same weight as 0.7 in a query.
    rows = ([float(str(weight)) for weight in row] for row in tensor.data.reshape(tensor.shape))
    return tuple(parse_mix(dict(zip(columns, row, strict=True)), normalize=normalize) for row in rows)


def _choices(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Any], query: Mapping[str, str], count: int
) -> tuple[GivenChoice | None, ...]:
    """Returns what the request gives for each of `count` images: a mix, or a β or strength, perhaps with a token.

    Raises InvalidBetaError, InvalidStrengthError or InvalidMixError for an invalid value. Raises InvalidRequestError if
    token, tokens or mix is not a text, or if normalize is not a boolean or is given without a mix.
    """
    normalize = parameters.get(NORMALIZE)
    if normalize is not None and (not (MIX in parameters or WEIGHTS in tensors) or not isinstance(normalize, bool)):
        raise InvalidRequestError(f"normalize belongs to a mix: give true or false, together with {MIX} or {WEIGHTS}")
    if WEIGHTS in tensors:
        return _weights(tensors[WEIGHTS], parameters.get(TOKENS), count, normalize=normalize is not False)
    if TOKENS in parameters:
        raise InvalidRequestError(f"the parameter {TOKENS} belongs to the input {WEIGHTS}, which is not given")
    if MIX in parameters:
        if not isinstance(parameters[MIX], str):
            raise InvalidRequestError(f"mix is {_short(parameters[MIX])}: give a text such as fog:0.7,robust:0.3")
        return (parse_mix(parameters[MIX], normalize=normalize is not False),) * count
    shares: tuple[float | Strength | None, ...]
    shares = _tensor_betas(tensors[BETA], count) if BETA in tensors else (_request_beta(parameters, query),) * count
    if TOKEN not in parameters:
        return shares
    token = parameters[TOKEN]
    if not isinstance(token, str):
        raise InvalidRequestError(f"token is {_short(token)}: give the name of a token")
    return tuple(TokenChoice(token, share) for share in shares)


def _request_beta(parameters: Mapping[str, Any], query: Mapping[str, str]) -> float | Strength | None:
    """Returns the β or the strength in the parameters or the query; None if neither has one.

    Raises InvalidBetaError or InvalidStrengthError for a value outside [0, 1].
    """
    if BETA in parameters:
        return _parameter_beta(parameters[BETA])
    if STRENGTH in parameters:
        return parse_strength(parameters[STRENGTH])
    if STRENGTH in query:
        return parse_strength(query[STRENGTH])
    return parse_beta(query[BETA]) if BETA in query else None


def _parameter_beta(value: Any) -> float:
    if isinstance(value, int) and not 0 <= value <= 1:  # float() fails for an int of many digits
        raise InvalidBetaError(value)
    return parse_beta(value)


def _timeout(value: object) -> int | None:
    """Returns the timeout in microseconds; None for the value 0, which means no timeout.

    Raises InvalidRequestError if the value is not a whole number, or is negative.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidRequestError(f"timeout is {_short(value)}: give a whole number of microseconds")
    return value or None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
