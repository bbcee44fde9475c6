"""Converts image bytes to pixels: decodes, turns upright, converts to RGB, crops and resizes.

The `PreprocessSpec` of the bundle gives the size and the crop. Evaluation, parity, server and jobs all use this module,
so that the measured accuracy applies to served images. Knows nothing about models. The ONNX graph normalises the
pixels.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tureen.errors import (
    EmptyImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.image_header import UNKNOWN_HEADER, read_header
from tureen.image_metadata import JPEG_SIGNATURE, PNG_SIGNATURE, orientation, strip_metadata

FORMATS = ("JPEG", "PNG", "WEBP")
PILLOW_MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = NDArray[np.uint8]


class PreprocessSpec(BaseModel):
    """The parameters for the crop and the size of an upright RGB image. They are a part of the bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(gt=0, le=4096, description="height and width of the pixels")
    crop_fraction: float = Field(
        default=1.0, gt=0, le=1, description="side of the centred square to keep, as a share of the shorter side"
    )
    interpolation: Literal["bicubic"] = Field(default="bicubic", description="always antialiased")


class ImageLimits(BaseModel):
    """The limits of an encoded image, checked before it is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_image_bytes: int = Field(default=20 * 2**20, gt=0, description="bytes of the encoded image")
    max_image_pixels: int = Field(
        default=25_000_000, gt=0, le=PILLOW_MAX_PIXELS, description="width × height, read from the image's header"
    )
    max_jpeg_scans: int = Field(
        default=32, gt=0, description="scans of a progressive JPEG; each costs as much as decoding the image once"
    )
    max_image_parts: int = Field(
        default=10_000, gt=0, description="segments of a JPEG before its pixels, or chunks of a PNG"
    )


DEFAULT_LIMITS = ImageLimits()


def pixels_from_bytes(data: bytes, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Returns the pixels, uint8 RGB (image_size, image_size, 3), of an encoded JPEG, PNG or WebP image.

    Uses the first frame of an animation. Checks all limits before decoding. Raises ImageError if `data` is empty, of
    another format or damaged, or if the image exceeds a limit.
    """
    return pixels_from_image(decode(data, limits), spec)


def pixels_from_image(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """Returns the pixels, uint8 (image_size, image_size, 3), of the centred square of an upright RGB image.

    One bicubic operation crops the square and resizes it. This is exact to a fraction of a pixel, and much cheaper than
    two operations.
    """
    width, height = image.size
    side = min(width, height) * spec.crop_fraction
    left, top = (width - side) / 2, (height - side) / 2
    size = (spec.image_size, spec.image_size)
    if image.size == size and spec.crop_fraction == 1.0:
        return np.array(image)
    resized = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(resized)


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Returns the upright RGB image that the bytes encode.

    Applies the EXIF orientation, blends transparency with white, scales 16-bit grey to 8 bits, and converts CMYK.
    Raises ImageError, as `pixels_from_bytes` does.
    """
    if not data:
        raise EmptyImageError
    if len(data) > limits.max_image_bytes:
        raise ImageTooLargeError("bytes", limits.max_image_bytes)
    if not _has_known_signature(data):
        raise UnsupportedImageTypeError
    # Decoders raise almost any exception for damaged input, with texts that may hold addresses or paths. The caller
    # gets an UndecodableImageError instead.
    try:
        stripped, exif, xmp = strip_metadata(data, max_parts=limits.max_image_parts, max_scans=limits.max_jpeg_scans)
        with Image.open(io.BytesIO(stripped), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_image_pixels:
                raise ImageTooLargeError("pixels", limits.max_image_pixels)
            header = read_header(data, max_scans=limits.max_jpeg_scans)
            if header is None or (header is not UNKNOWN_HEADER and header.pixels < width * height):
                raise UndecodableImageError  # the two headers differ, so the cost was estimated too low
            return _upright_rgb(image, exif, xmp)
    except ImageTooLargeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLargeError("pixels", limits.max_image_pixels) from None
    except Exception as error:
        raise UndecodableImageError from error


def upright_rgb(image: Image.Image, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Returns an upright RGB copy of the Pillow image, equal to the image that `decode` returns for its file.

    Applies the EXIF orientation in `image.info`. `ImageOps.exif_transpose` removes that orientation, so its result is
    not turned again.

    Raises:
    - EmptyImageError if the image has no pixels
    - ImageTooLargeError if the image has more pixels than the limit
    - UndecodableImageError if Pillow cannot load the image
    - UnsupportedImageTypeError if the mode of the image does not define which value is white, or has no RGB form
    """
    if not image.width * image.height:
        raise EmptyImageError
    if image.width * image.height > limits.max_image_pixels:
        raise ImageTooLargeError("pixels", limits.max_image_pixels)
    try:
        image.load()
    except Exception as error:  # as in `decode`
        raise UndecodableImageError(
            "the Pillow image cannot be loaded: its file is damaged, cut short or closed"
        ) from error
    if image.mode == "F" or (image.mode == "I" and not _is_sixteen_bit(image)):
        raise UnsupportedImageTypeError(
            f"a Pillow image of mode {image.mode} may have any values: scale it to 0 to 255, and convert it to L or RGB"
        )
    try:
        return _upright_rgb(image)
    except ValueError as error:
        raise UnsupportedImageTypeError(
            f"a Pillow image of mode {image.mode} cannot be converted to RGB: give one of mode L, RGB or RGBA"
        ) from error


def _is_sixteen_bit(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() <= 65_535)


def _upright_rgb(image: Image.Image, exif: bytes = b"", xmp: bytes = b"") -> Image.Image:
    """Returns the image upright and in RGB.

    exif, xmp: the parts of the file that define the orientation. For an empty part, uses the part in `image.info`.
    """
    image.load()
    exif, xmp = exif or image.info.get("exif") or b"", xmp or image.info.get("xmp") or b""
    return _apply_orientation(_to_rgb(image), orientation(exif, xmp))


def _has_known_signature(data: bytes) -> bool:
    return data.startswith((JPEG_SIGNATURE, PNG_SIGNATURE)) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it instead of scaling it
        deep = np.asarray(image).astype(np.uint32)
        grey = np.where(deep == image.info.get("transparency", -1), 255, deep // 257)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, foreground).convert("RGB")
    return image.convert("RGB")


def _apply_orientation(rgb: Image.Image, orientation: int) -> Image.Image:
    transpose = _UPRIGHT.get(orientation)
    return rgb if transpose is None else rgb.transpose(transpose)
