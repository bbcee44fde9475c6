"""The bytes of the image in a request: a raw body, or the field `image` of a multipart form. Capped before parsed."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser
from starlette.requests import ClientDisconnect, Request

from serve.errors import IncompleteBodyError, InvalidParameterError, MalformedFormError
from tureen.errors import ImageTooLargeError, UnsupportedImageTypeError

IMAGE_FIELD = "image"
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
UNDECLARED_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
FORM_TYPE = "multipart/form-data"
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries and part headers, beside the image itself


async def image_bytes(request: Request, max_image_bytes: int) -> bytes:
    """The encoded image in the request.

    A raw body may be declared as image/jpeg, image/png, image/webp or not at all (curl's --data-binary declares a
    form); which of the three it is, its bytes decide. Raises ImageTooLargeError as soon as the limit is passed,
    UnsupportedImageTypeError for a body of another declared type, and the errors of `_image_of_form`.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImageTypeError("the body has a Content-Encoding: send the image file as it is")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == FORM_TYPE:
        body = await _capped(request, max_image_bytes + FORM_OVERHEAD_BYTES, max_image_bytes)
        return _image_of_form(request.headers["content-type"], body, max_image_bytes)
    if media_type not in IMAGE_TYPES | UNDECLARED_TYPES:
        raise UnsupportedImageTypeError(f"the Content-Type is none of {', '.join(sorted(IMAGE_TYPES))}, {FORM_TYPE}")
    return await _capped(request, max_image_bytes, max_image_bytes)


async def _capped(request: Request, max_bytes: int, max_image_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise ImageTooLargeError("bytes", max_image_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise ImageTooLargeError("bytes", max_image_bytes)
    except ClientDisconnect:
        raise IncompleteBodyError from None
    return bytes(body)


def _image_of_form(content_type: str, body: bytes, max_image_bytes: int) -> bytes:
    """The one field `image`; any other field is an error, since a β hidden there would silently not count."""
    parts: list[tuple[str, bytes]] = []
    ended: list[bool] = []

    def add(name: bytes | None, data: bytes) -> None:
        parts.append(((name or b"").decode("utf-8", "replace"), data))
        if len(parts) > 1:  # refused here, so that a form of a million tiny parts is not read to its end
            raise _wrong_fields(parts)

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
    name, image = parts[0]
    if name != IMAGE_FIELD:
        raise _wrong_fields(parts)
    if len(image) > max_image_bytes:
        raise ImageTooLargeError("bytes", max_image_bytes)
    return image


def _wrong_fields(parts: list[tuple[str, bytes]]) -> InvalidParameterError:
    names = ", ".join(repr(name[:40]) for name, _ in parts)
    return InvalidParameterError(
        f"the form holds the fields {names}; it must hold {IMAGE_FIELD!r} alone, and beta and top_k go into the query"
    )
