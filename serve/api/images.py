"""The images in a body, each with its β where it names one: a raw image, a multipart form, or JSON.

Pure: bytes in, images out. What a body may weigh is checked before, by `serve.http.body_stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from serve.errors import InvalidParameterError, MalformedFormError
from serve.http.json_body import decode_base64, parse_json
from serve.limits import BodyLimits
from tureen.errors import ImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageTypeError
from tureen.tokens import parse_beta

IMAGE_FIELD = "image"
BETA_FIELD = "beta"
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
UNDECLARED_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
FORM_TYPE = "multipart/form-data"
JSON_TYPE = "application/json"
MAX_JSON_DEPTH = 4  # {"images": [{…}]} is 3 deep


@dataclass(frozen=True)
class Images:
    """The encoded images of a request, and the β that each names. is_list: whether the answer is a list too.

    In a list, an image that cannot be read is the error that says why.
    """

    images: Sequence[bytes | ImageError]
    betas: list[float | None]
    is_list: bool

    def readable(self) -> list[bytes]:
        """The images that can be read, in order."""
        return [image for image in self.images if isinstance(image, bytes)]

    def only(self) -> bytes:
        """The first image, of a request that holds one; raises the ImageError in its place."""
        image = self.images[0]
        if isinstance(image, ImageError):
            raise image
        return image


def media_type_of(content_type: str) -> str:
    """The media type without its parameters; raises UnsupportedImageTypeError for one that is not read here."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in IMAGE_TYPES | UNDECLARED_TYPES | {FORM_TYPE, JSON_TYPE}:
        known = ", ".join((*sorted(IMAGE_TYPES), FORM_TYPE, JSON_TYPE))
        raise UnsupportedImageTypeError(f"the Content-Type is none of {known}")
    return media_type


def max_body_bytes(media_type: str, limits: BodyLimits) -> int:
    """How many bytes a body of this type may have: of a raw image the image's, else the request's."""
    return limits.max_request_bytes if media_type in (FORM_TYPE, JSON_TYPE) else limits.max_image_bytes


def images_of(body: bytes, content_type: str, limits: BodyLimits) -> Images:
    """The images of a body.

    A raw body may be declared as image/jpeg, image/png, image/webp or not at all (curl's --data-binary declares a
    form); which of the three it is, its bytes decide. Raises UnsupportedImageTypeError, MalformedFormError,
    InvalidParameterError, InvalidBetaError or ImageTooLargeError.
    """
    media_type = media_type_of(content_type)
    if media_type == FORM_TYPE:
        found = _images_of_form(content_type, body, limits)
    elif media_type == JSON_TYPE:
        found = _images_of_json(body, limits)
    else:
        return Images([body], [None], is_list=False)
    if not found.is_list and len(found.only()) > limits.max_image_bytes:
        raise ImageTooLargeError("bytes", limits.max_image_bytes)
    return found


def _images_of_form(content_type: str, body: bytes, limits: BodyLimits) -> Images:
    """The parts `image`, one or several, and as many parts `beta` or none; any other part is an error."""
    parts: list[tuple[str, bytes]] = []
    ended: list[bool] = []

    def add(name: bytes | None, data: bytes) -> None:
        parts.append(((name or b"").decode("utf-8", "replace"), data))
        # Refused here, so that a form of a million tiny parts is not read to its end.
        if parts[-1][0] not in (IMAGE_FIELD, BETA_FIELD):
            raise InvalidParameterError(
                f"the form holds the field {parts[-1][0][:40]!r}; it holds {IMAGE_FIELD!r}, once or more, and "
                f"{BETA_FIELD!r} for each where wanted; all else goes into the query"
            )
        if len(parts) > 2 * limits.max_images:
            raise _too_many(limits)

    def on_field(field: Field) -> None:
        add(field.field_name, field.value or b"")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    try:
        # In memory throughout: the body is capped already, and a temporary file would be one more thing to fail.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = create_form_parser({"Content-Type": content_type.encode()}, on_field, on_file, config=config)
        parser.on_end = lambda: ended.append(True)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedFormError("the multipart body cannot be read: check its boundary") from None
    if not parts or not ended:
        raise MalformedFormError("the multipart body is cut short: check its boundary and its end")
    images = [data for name, data in parts if name == IMAGE_FIELD]
    betas: list[float | None] = [
        parse_beta(data.decode("utf-8", "replace")) for name, data in parts if name == BETA_FIELD
    ]
    if not images:
        raise InvalidParameterError(f"the form holds no field {IMAGE_FIELD!r}")
    if len(images) > limits.max_images:
        raise _too_many(limits)
    if betas and len(betas) != len(images):
        raise InvalidParameterError(
            f"the form holds {len(images)} images and {len(betas)} β: give each its own, or none"
        )
    return Images(images, betas or [None] * len(images), is_list=len(images) > 1)


def _images_of_json(body: bytes, limits: BodyLimits) -> Images:
    """{"images": [{"data": "<base64>", "beta": 0.7}, …]}, β where wanted."""
    value = parse_json(body, max_bytes=limits.max_request_bytes, max_depth=MAX_JSON_DEPTH)
    entries = value.get("images") if isinstance(value, dict) and set(value) == {"images"} else None
    if not isinstance(entries, list):
        raise InvalidParameterError('the JSON is no {"images": [{"data": "<base64>", "beta": 0.7}, …]}')
    if not entries:
        raise InvalidParameterError(f"the list of images is empty: send 1 to {limits.max_images}")
    if len(entries) > limits.max_images:
        raise _too_many(limits)
    images, betas = zip(*(_json_image(index, entry) for index, entry in enumerate(entries)), strict=True)
    return Images(images, list(betas), is_list=True)


def _json_image(index: int, entry: Any) -> tuple[bytes | ImageError, float | None]:
    if (
        not isinstance(entry, dict)
        or not {"data"} <= set(entry) <= {"data", BETA_FIELD}
        or not isinstance(entry["data"], str)
    ):
        raise InvalidParameterError(f'image {index} is not an object of a text "data" and, optionally, "beta"')
    image: bytes | ImageError
    try:
        image = decode_base64(entry["data"])
    except ValueError:
        image = UndecodableImageError("the data of the image is neither a base64 text nor a data: URL with one")
    beta = entry.get(BETA_FIELD)
    if beta is None:
        return image, None
    if isinstance(beta, str) and beta not in ("clean", "robust"):
        raise InvalidParameterError(f'the beta of image {index} is a text: give a number, "clean" or "robust"')
    return image, parse_beta(beta)


def _too_many(limits: BodyLimits) -> InvalidParameterError:
    return InvalidParameterError(f"the request holds more than {limits.max_images} images: send several requests")
