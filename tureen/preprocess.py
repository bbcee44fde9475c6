"""Image bytes to pixels: decode, orient, colour, crop, resize. The one home of all five, driven by the bundle's spec.

Training's evaluation view, parity, server and jobs all call this, so that an accuracy measured is an accuracy
served. Knows nothing about models; normalisation is inside the graph.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

try:
    import simplejpeg
except ImportError:  # an extra brings it; Pillow decodes the same, as `benchmarks.decoding` shows hardly slower
    simplejpeg = None

from tureen.errors import (
    EmptyImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.image_cost import UNKNOWN_HEADER, read_header
from tureen.image_metadata import JPEG_SIGNATURE, PNG_SIGNATURE, orientation, strip_metadata

FORMATS = ("JPEG", "PNG", "WEBP")
PILLOW_MAX_PIXELS = 89_478_485  # where Pillow's own decompression-bomb check sets in

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
    """How an upright RGB image becomes pixels. Stored in the bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(gt=0, le=4096, description="height and width of the pixels")
    crop_fraction: float = Field(
        default=1.0, gt=0, le=1, description="side of the centred square that is kept, as a share of the shorter side"
    )
    interpolation: Literal["bicubic"] = Field(default="bicubic", description="always antialiased")


class ImageLimits(BaseModel):
    """What an encoded image may be, checked before anything is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_image_bytes: int = Field(default=20 * 2**20, gt=0, description="bytes of the encoded image")
    max_image_pixels: int = Field(
        default=25_000_000, gt=0, le=PILLOW_MAX_PIXELS, description="width × height, read from the image's header"
    )
    max_jpeg_scans: int = Field(
        default=32, gt=0, description="scans of a progressive JPEG, each of which costs as much as a whole decoding"
    )
    max_image_parts: int = Field(
        default=10_000, gt=0, description="segments of a JPEG before its pixels, chunks of a PNG"
    )


DEFAULT_LIMITS = ImageLimits()


def pixels_from_bytes(data: bytes, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """The pixels, uint8 RGB (image_size, image_size, 3), of an encoded JPEG, PNG or WebP image.

    Raises an ImageError: empty, not one of the three formats, too large (every limit is checked before
    decoding), or damaged. Of an animation the first frame counts.
    """
    return pixels_from_image(decode(data, limits), spec)


def pixels_from_image(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """The pixels, uint8 (image_size, image_size, 3), of an upright RGB image: centred square crop, then bicubic.

    The crop is folded into the resize, which is exact to a fraction of a pixel and much cheaper than resizing first.
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
    """An upright RGB image of the encoded bytes; raises an ImageError as `pixels_from_bytes` does.

    EXIF orientation is applied; transparency is laid over white; 16-bit grey is scaled to 8 bits; CMYK is converted.
    """
    if not data:
        raise EmptyImageError
    if len(data) > limits.max_image_bytes:
        raise ImageTooLargeError("bytes", limits.max_image_bytes)
    if not _has_known_signature(data):
        raise UnsupportedImageTypeError
    # A decoder answers damaged input with almost any exception, and its text may hold addresses or paths: every
    # one of them means "cannot be decoded" to the caller, and none of them is passed on.
    try:
        lean, exif, xmp = strip_metadata(data, max_parts=limits.max_image_parts, max_scans=limits.max_jpeg_scans)
        with Image.open(io.BytesIO(lean), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_image_pixels:
                raise ImageTooLargeError("pixels", limits.max_image_pixels)
            header = read_header(data, max_scans=limits.max_jpeg_scans)
            if header is None or (header is not UNKNOWN_HEADER and header.pixels < width * height):
                raise UndecodableImageError  # two headers that differ, so that its cost was counted too low
            if image.format == "JPEG" and (rgb := _decode_with_simplejpeg(lean, image)) is not None:
                return _apply_orientation(rgb, orientation(exif, xmp))
            return _upright_rgb(image, exif, xmp)
    except ImageTooLargeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLargeError("pixels", limits.max_image_pixels) from None
    except Exception as error:
        raise UndecodableImageError from error


def upright_rgb(image: Image.Image, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The Pillow image as `decode` returns the image of its file: upright, in RGB; the image itself is not changed.

    It is turned by the EXIF orientation in its `info`, which `ImageOps.exif_transpose` takes away. Raises
    EmptyImageError, ImageTooLargeError where it has more pixels than the limit, UndecodableImageError where Pillow
    cannot load it, and UnsupportedImageTypeError where its mode does not say which value is white.
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
    """The one conversion of encoded and of Pillow images. exif, xmp: from the file, where they are not in `info`."""
    image.load()
    exif, xmp = exif or image.info.get("exif") or b"", xmp or image.info.get("xmp") or b""
    return _apply_orientation(_to_rgb(image), orientation(exif, xmp))


def _decode_with_simplejpeg(data: bytes, image: Image.Image) -> Image.Image | None:
    """The JPEG in RGB by simplejpeg, whose pixels are Pillow's own; None where it is missing, or has any doubt.

    It refuses what is damaged in the least, and CMYK is not its own: Pillow decides what becomes of those. image: the
    same, opened by Pillow, which has checked the size that simplejpeg is held to.
    """
    if simplejpeg is None or image.mode not in ("RGB", "L"):
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", buffer=pixels))
    except ValueError:
        return None


def _has_known_signature(data: bytes) -> bool:
    return data.startswith((JPEG_SIGNATURE, PNG_SIGNATURE)) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scaling
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
