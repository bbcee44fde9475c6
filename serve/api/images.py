"""Parses the body of a request into encoded images, each with an optional β, strength, token or mix.

A body is a raw image, a multipart form, or JSON. `serve.http.body_stream` has checked the size of the body. Does not
decode images. Knows nothing about HTTP requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from serve.errors import InvalidParameterError, MalformedFormError
from serve.http.json_body import decode_base64, parse_json
from serve.limits import BodyLimits
from tureen.errors import ImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageTypeError
from tureen.tokens import GivenChoice, Strength, TokenChoice, parse_beta, parse_mix, parse_strength

IMAGE_FIELD = "image"
BETA_FIELD = "beta"
STRENGTH_FIELD = "strength"
TOKEN_FIELD = "token"  # noqa: S105 - not a password
MIX_FIELD = "mix"
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
UNDECLARED_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
FORM_TYPE = "multipart/form-data"
JSON_TYPE = "application/json"
MAX_JSON_DEPTH = 4  # {"images": [{…}]} is 3 deep


FORM_CHOICES: dict[str, Callable[[str], GivenChoice]] = {
    BETA_FIELD: parse_beta,
    STRENGTH_FIELD: parse_strength,
    TOKEN_FIELD: TokenChoice,
    MIX_FIELD: parse_mix,
}
"""The fields that choose the token of an image, and the function that parses the text of each."""


@dataclass(frozen=True)
class RequestImages:
    """The encoded images of a request, and the β, strength, token or mix that the request gives for each image.

    images: an ImageError replaces an image that cannot be read. choices: None for an image without a choice.
    """

    images: Sequence[bytes | ImageError]
    choices: list[GivenChoice | None]  # one for each image
    is_list: bool  # whether the response has a list of results

    def readable(self) -> list[bytes]:
        """Returns the images that can be read, in order."""
        return [image for image in self.images if isinstance(image, bytes)]

    def single(self) -> bytes:
        """Returns the bytes of the first image. Raises its ImageError if it cannot be read."""
        image = self.images[0]
        if isinstance(image, ImageError):
            raise image
        return image


def parse_media_type(content_type: str) -> str:
    """Returns the media type in the value of a Content-Type header, in lower case and without parameters.

    Raises UnsupportedImageTypeError if a body of this media type is not supported.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in IMAGE_TYPES | UNDECLARED_TYPES | {FORM_TYPE, JSON_TYPE}:
        supported = ", ".join((*sorted(IMAGE_TYPES), FORM_TYPE, JSON_TYPE))
        raise UnsupportedImageTypeError(f"the Content-Type is not supported: use one of {supported}")
    return media_type


def max_body_bytes(media_type: str, limits: BodyLimits) -> int:
    """Returns the largest size of a body in bytes: max_request_bytes for a form or JSON, else max_image_bytes."""
    return limits.max_request_bytes if media_type in (FORM_TYPE, JSON_TYPE) else limits.max_image_bytes


def parse_images(body: bytes, content_type: str, limits: BodyLimits) -> RequestImages:
    """Returns the images in a body.

    A raw image needs no Content-Type, and may have the type application/x-www-form-urlencoded that curl --data-binary
    sends. The decoder detects the format of an image from its bytes later.

    Raises UnsupportedImageTypeError for any other Content-Type, and MalformedFormError if a form cannot be parsed.
    Raises InvalidParameterError if JSON cannot be parsed, if a field is missing, unknown or invalid, or if the number
    of images is 0 or above the limit. Raises InvalidBetaError, InvalidStrengthError or InvalidMixError for an invalid
    choice. Raises ImageTooLargeError if the single image of a form has more than max_image_bytes.
    """
    media_type = parse_media_type(content_type)
    if media_type == FORM_TYPE:
        parsed = _parse_form(content_type, body, limits)
    elif media_type == JSON_TYPE:
        parsed = _parse_json_body(body, limits)
    else:
        return RequestImages([body], [None], is_list=False)
    if not parsed.is_list and len(parsed.single()) > limits.max_image_bytes:
        raise ImageTooLargeError("bytes", limits.max_image_bytes)
    return parsed


def _parse_form(content_type: str, body: bytes, limits: BodyLimits) -> RequestImages:
    """Returns the images of a form. The form has a part `image` for each image.

    The form may also choose for each image, by a part `beta`, `strength`, `token` or `mix`. Then it has one such part
    for every image, in the order of the images. The parts of two images may have different names. `parse_images`
    documents the errors.
    """
    parts: list[tuple[str, bytes]] = []
    is_complete = False

    def add(name: bytes | None, data: bytes) -> None:
        parts.append(((name or b"").decode("utf-8", "replace"), data))
        # Checked for each part, so that the parser stops early in a form of a million tiny parts.
        if parts[-1][0] not in (IMAGE_FIELD, *FORM_CHOICES):
            raise InvalidParameterError(
                f"the form has a field {parts[-1][0][:40]!r}: use {IMAGE_FIELD!r} and, for each image or none, one of "
                f"{', '.join(map(repr, FORM_CHOICES))}; send all other parameters in the query"
            )
        if len(parts) > 2 * limits.max_images:
            raise _too_many(limits)

    def on_field(field: Field) -> None:
        add(field.field_name, field.value or b"")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    def on_end() -> None:
        nonlocal is_complete
        is_complete = True

    try:
        # Keeps every part in memory: the body has a limit already, and a temporary file could fail.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = create_form_parser({"Content-Type": content_type.encode()}, on_field, on_file, config=config)
        parser.on_end = on_end
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedFormError("the multipart body cannot be parsed: check its boundary") from None
    if not parts or not is_complete:
        raise MalformedFormError("the multipart body is incomplete: check its boundary and its end")
    images = [data for name, data in parts if name == IMAGE_FIELD]
    choices: list[GivenChoice | None] = [
        FORM_CHOICES[name](data.decode("utf-8", "replace")) for name, data in parts if name in FORM_CHOICES
    ]
    if not images:
        raise InvalidParameterError(f"the form has no field {IMAGE_FIELD!r}: send each image as one")
    if len(images) > limits.max_images:
        raise _too_many(limits)
    if len(choices) > len(images) and len({name for name, _ in parts if name in FORM_CHOICES}) > 1:
        raise InvalidParameterError(
            f"the form has more choices than images: {', '.join(FORM_CHOICES)} exclude each other for an image"
        )
    if choices and len(choices) != len(images):
        raise InvalidParameterError(
            f"the form has {len(images)} images and {len(choices)} of {', '.join(FORM_CHOICES)}: give one for each "
            "image, or none"
        )
    return RequestImages(images, choices or [None] * len(images), is_list=len(images) > 1)


def _parse_json_body(body: bytes, limits: BodyLimits) -> RequestImages:
    """Returns the images in the JSON text {"images": [{"data": "<base64>", "beta": 0.7}, …]}.

    Each image may have `beta`, `strength` or `mix`, or a `token` with or without `beta` or `strength`. Raises the
    errors of `parse_images`.
    """
    value = parse_json(body, max_bytes=limits.max_request_bytes, max_depth=MAX_JSON_DEPTH)
    entries = value.get("images") if isinstance(value, dict) and set(value) == {"images"} else None
    if not isinstance(entries, list):
        raise InvalidParameterError(
            'the JSON has another form: send {"images": [{"data": "<base64>", "beta": 0.7}, …]}'
        )
    if not entries:
        raise InvalidParameterError(f"the list of images is empty: send 1 to {limits.max_images}")
    if len(entries) > limits.max_images:
        raise _too_many(limits)
    images, choices = zip(*(_parse_json_image(index, entry) for index, entry in enumerate(entries)), strict=True)
    return RequestImages(images, list(choices), is_list=True)


def _parse_json_image(index: int, entry: Any) -> tuple[bytes | ImageError, GivenChoice | None]:
    if (
        not isinstance(entry, dict)
        or not {"data"} <= set(entry) <= {"data", *FORM_CHOICES}
        or not isinstance(entry["data"], str)
    ):
        raise InvalidParameterError(
            f'image {index} has another form: send an object with the string "data" and, optionally, '
            f"{', '.join(FORM_CHOICES)}"
        )
    image: bytes | ImageError
    try:
        image = decode_base64(entry["data"])
    except ValueError:
        image = UndecodableImageError("the data of the image is neither base64 nor a base64 data: URL")
    return image, _parse_json_choice(index, entry)


def _parse_json_choice(index: int, entry: dict[str, Any]) -> GivenChoice | None:
    beta, strength, token, mix = (entry.get(name) for name in FORM_CHOICES)
    if mix is not None:
        if not isinstance(mix, str | dict) or any(value is not None for value in (beta, strength, token)):
            raise InvalidParameterError(
                f'image {index} has a mix of another form, or beside another choice: give {{"fog": 0.7, "robust": 0.3}}'
            )
        return parse_mix(mix)
    share: float | Strength | None = None
    if strength is not None:
        if beta is not None:
            raise InvalidParameterError(f"image {index} has a beta and a strength: give one of them")
        if isinstance(strength, str):
            raise InvalidParameterError(f"the strength of image {index} is a string: give a number")
        share = parse_strength(strength)
    elif beta is not None:
        if isinstance(beta, str) and beta not in ("clean", "robust"):
            raise InvalidParameterError(f'the beta of image {index} is a string: give a number, "clean" or "robust"')
        share = parse_beta(beta)
    if token is None:
        return share
    if not isinstance(token, str):
        raise InvalidParameterError(f"the token of image {index} is not a string: give the name of a token")
    return TokenChoice(token, share)


def _too_many(limits: BodyLimits) -> InvalidParameterError:
    return InvalidParameterError(
        f"the request has more than {limits.max_images} images, the limit: send several requests"
    )
