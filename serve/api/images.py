"""Parses the body of a request into encoded images, each with an optional β or strength.

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
from tureen.tokens import Strength, parse_beta, parse_strength

IMAGE_FIELD = "image"
BETA_FIELD = "beta"
STRENGTH_FIELD = "strength"
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
UNDECLARED_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
FORM_TYPE = "multipart/form-data"
JSON_TYPE = "application/json"
MAX_JSON_DEPTH = 4  # {"images": [{…}]} is 3 deep


@dataclass(frozen=True)
class RequestImages:
    """The encoded images of a request, and the β or strength that the request gives for each image.

    betas: None for an image without β or strength. images: an ImageError replaces an image that cannot be read.
    """

    images: Sequence[bytes | ImageError]
    betas: list[float | Strength | None]  # one for each image
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
    of images is 0 or above the limit. Raises InvalidBetaError or InvalidStrengthError for a value outside [0, 1].
    Raises ImageTooLargeError if the single image of a form has more than max_image_bytes.
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

    The form may also have parts `beta` and `strength`, one for each image in the order of the images. It has either one
    such part for every image, or none. Raises the errors of `parse_images`.
    """
    parts: list[tuple[str, bytes]] = []
    is_complete = False

    def add(name: bytes | None, data: bytes) -> None:
        parts.append(((name or b"").decode("utf-8", "replace"), data))
        # Checked for each part, so that the parser stops early in a form of a million tiny parts.
        if parts[-1][0] not in (IMAGE_FIELD, BETA_FIELD, STRENGTH_FIELD):
            raise InvalidParameterError(
                f"the form has a field {parts[-1][0][:40]!r}: use {IMAGE_FIELD!r} and, for each image or none, "
                f"{BETA_FIELD!r} or {STRENGTH_FIELD!r}; send all other parameters in the query"
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
    parsers: dict[str, Callable[[str], float | Strength]] = {BETA_FIELD: parse_beta, STRENGTH_FIELD: parse_strength}
    betas: list[float | Strength | None] = [
        parsers[name](data.decode("utf-8", "replace")) for name, data in parts if name in parsers
    ]
    if not images:
        raise InvalidParameterError(f"the form has no field {IMAGE_FIELD!r}: send each image as one")
    if len(images) > limits.max_images:
        raise _too_many(limits)
    if len(betas) > len(images) and {BETA_FIELD, STRENGTH_FIELD} <= {name for name, _ in parts}:
        raise InvalidParameterError(
            f"the form has more β and strengths than images: {BETA_FIELD} and {STRENGTH_FIELD} exclude each other for "
            "an image"
        )
    if betas and len(betas) != len(images):
        raise InvalidParameterError(
            f"the form has {len(images)} images and {len(betas)} β or strengths: give one for each image, or none"
        )
    return RequestImages(images, betas or [None] * len(images), is_list=len(images) > 1)


def _parse_json_body(body: bytes, limits: BodyLimits) -> RequestImages:
    """Returns the images in the JSON text {"images": [{"data": "<base64>", "beta": 0.7}, …]}.

    Each image may have `beta`, `strength` or neither. Raises the errors of `parse_images`.
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
    images, betas = zip(*(_parse_json_image(index, entry) for index, entry in enumerate(entries)), strict=True)
    return RequestImages(images, list(betas), is_list=True)


def _parse_json_image(index: int, entry: Any) -> tuple[bytes | ImageError, float | Strength | None]:
    if (
        not isinstance(entry, dict)
        or not {"data"} <= set(entry) <= {"data", BETA_FIELD, STRENGTH_FIELD}
        or not isinstance(entry["data"], str)
    ):
        raise InvalidParameterError(
            f'image {index} has another form: send an object with the string "data" and, optionally, "beta" or '
            '"strength"'
        )
    image: bytes | ImageError
    try:
        image = decode_base64(entry["data"])
    except ValueError:
        image = UndecodableImageError("the data of the image is neither base64 nor a base64 data: URL")
    beta, strength = entry.get(BETA_FIELD), entry.get(STRENGTH_FIELD)
    if strength is not None:
        if beta is not None:
            raise InvalidParameterError(f"image {index} has a beta and a strength: give one of them")
        if isinstance(strength, str):
            raise InvalidParameterError(f"the strength of image {index} is a string: give a number")
        return image, parse_strength(strength)
    if beta is None:
        return image, None
    if isinstance(beta, str) and beta not in ("clean", "robust"):
        raise InvalidParameterError(f'the beta of image {index} is a string: give a number, "clean" or "robust"')
    return image, parse_beta(beta)


def _too_many(limits: BodyLimits) -> InvalidParameterError:
    return InvalidParameterError(
        f"the request has more than {limits.max_images} images, the limit: send several requests"
    )
