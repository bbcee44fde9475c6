"""Builds the requests to /classify and /sweep: query, body and Content-Type. Sends nothing.

Does not check the values of β, strength and mixes. The server does, and its error says what to give.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tureen.errors import ArgumentError, ArgumentTypeError

BetaValue = float | str
MixValue = str | Mapping[str, float]


@dataclass(frozen=True)
class ApiRequest:
    """A POST request. parameters: of the query. content: the body. content_type: None for a single image."""

    path: str
    parameters: dict[str, str]
    content: bytes
    content_type: str | None = None

    def headers(self) -> dict[str, str]:
        """Returns the headers of the request. A single image has none: the server detects its format."""
        return {} if self.content_type is None else {"Content-Type": self.content_type}


@dataclass(frozen=True)
class ImageChoice:
    """What chooses the token of an image. None: the caller does not give it. At most one of beta and strength."""

    beta: BetaValue | None = None
    strength: float | None = None
    token: str | None = None
    mix: MixValue | None = None

    def fields(self) -> dict[str, str]:
        """Returns the given choices as texts, by the names that the query and a form have for them."""
        texts = {
            "beta": None if self.beta is None else _number_text(self.beta),
            "strength": None if self.strength is None else _number_text(self.strength),
            "token": self.token,
            "mix": None if self.mix is None else _mix_text(self.mix),
        }
        return {name: text for name, text in texts.items() if text is not None}

    def json_fields(self) -> dict[str, Any]:
        """Returns the given choices as JSON values, by the names that the JSON of an image has for them."""
        numbers = {"beta": self.beta, "strength": self.strength}
        values = {name: _json_number(value) for name, value in numbers.items() if value is not None}
        texts = {name: text for name, text in self.fields().items() if name not in numbers}
        return {**values, **texts}


@dataclass(frozen=True)
class SharedOptions:
    """What holds for all images of a call. None: the default of the server.

    normalize: whether the server divides the weights of a mix by their sum.
    """

    policy: str | None = None
    normalize: bool | None = None
    top_k: int | None = None

    def parameters(self) -> dict[str, str]:
        """Returns the given options as parameters of the query."""
        texts = {
            "policy": self.policy,
            "normalize": None if self.normalize is None else str(self.normalize).lower(),
            "top_k": None if self.top_k is None else str(self.top_k),
        }
        return {name: text for name, text in texts.items() if text is not None}


def classify_request(images: Sequence[bytes], choices: Sequence[ImageChoice], options: SharedOptions) -> ApiRequest:
    """Returns the request that classifies one image or several.

    images: encoded, at least one. choices: one for each image. A single image is the body. Several images are a form.
    If they have the same choice, it is in the query. If an image has no choice, or a token and a share, the form cannot
    have it, and the images are JSON, which has a third more bytes.

    Raises ArgumentError if normalize is given and the mixes differ, because then the query has no mix.
    """
    shared = options.parameters()
    if all(choice == choices[0] for choice in choices):
        parameters = {**choices[0].fields(), **shared}
        if len(images) == 1:
            return ApiRequest("/classify", parameters, images[0])
        content, content_type = _form([("image", image) for image in images])
        return ApiRequest("/classify", parameters, content, content_type)
    if options.normalize is not None:
        raise ArgumentError("normalize holds for one mix of all images: leave it out, or give one mix")
    fields = [choice.fields() for choice in choices]
    if all(len(one) == 1 for one in fields):
        parts = []
        for image, one in zip(images, fields, strict=True):
            parts += [("image", image), *((name, text.encode()) for name, text in one.items())]
        content, content_type = _form(parts)
        return ApiRequest("/classify", shared, content, content_type)
    entries = [
        {"data": base64.b64encode(image).decode(), **choice.json_fields()}
        for image, choice in zip(images, choices, strict=True)
    ]
    return ApiRequest("/classify", shared, json.dumps({"images": entries}).encode(), "application/json")


def sweep_request(
    image: bytes,
    betas: str | Iterable[BetaValue] | None,
    strengths: str | Iterable[float] | None,
    options: SharedOptions,
) -> ApiRequest:
    """Returns the request that classifies one image at many β.

    betas, strengths: a grid such as "0:1:0.1", or the values. None: the default of the server.
    """
    parameters = {
        name: values if isinstance(values, str) else ",".join(map(_number_text, values))
        for name, values in (("betas", betas), ("strengths", strengths))
        if values is not None
    }
    return ApiRequest("/sweep", {**parameters, **options.parameters()}, image)


def _form(parts: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Returns the body of a multipart form, and its Content-Type. parts: name and content, in order."""
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, data in parts:
        file_name = '; filename="image"' if name == "image" else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file_name}\r\n\r\n'
        lines += [head.encode(), data, b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _number_text(value: BetaValue) -> str:
    """Returns the text of a number, with all its digits. Returns a text such as "robust" unchanged."""
    if isinstance(value, str):
        return value
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{type(value).__name__} is no β or strength: give a number or a text") from None


def _json_number(value: BetaValue) -> BetaValue:
    """Returns the number that a value or its text gives. Returns a text such as "robust" unchanged."""
    text = _number_text(value)
    try:
        return float(text)
    except ValueError:
        return text


def _mix_text(mix: MixValue) -> str:
    return mix if isinstance(mix, str) else ",".join(f"{name}:{_number_text(weight)}" for name, weight in mix.items())
