"""Image bytes to pixels: decode, orient, colour, crop, resize. The one home of all five, driven by the bundle's spec.

Training's evaluation view, parity, server and jobs all call this, so that an accuracy measured is an accuracy
served. Knows nothing about models; normalisation is inside the graph.
"""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

try:
    import simplejpeg
except ImportError:  # an extra brings it; Pillow decodes the same, a few per cent slower
    simplejpeg = None

from tureen.errors import (
    EmptyImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)

FORMATS = ("JPEG", "PNG", "WEBP")
PILLOW_MAX_PIXELS = 89_478_485  # where Pillow's own decompression-bomb check sets in

_START_OF_SCAN = b"\xff\xda"  # within a scan a byte 0xff is followed by 0x00: it is a marker, there or in a preview
_EXIF_ORIENTATION = 0x0112
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
        default=100, gt=0, description="scans of a progressive JPEG, of which each costs as much as a whole decoding"
    )


DEFAULT_LIMITS = ImageLimits()


def pixels_from_bytes(
    data: bytes, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS, *, jpeg_scaling: bool = False
) -> Pixels:
    """The pixels, uint8 RGB (image_size, image_size, 3), of an encoded JPEG, PNG or WebP image.

    jpeg_scaling: decode a JPEG at the smallest of its eighths that is still as large as the pixels. A little faster,
    and other pixels than those that accuracy was measured on; `benchmarks.decoding` tells what it costs.
    Raises an ImageError: empty, not one of the three formats, too large (every limit is checked before
    decoding), or damaged. Of an animation the first frame counts.
    """
    least_side = math.ceil(spec.image_size / spec.crop_fraction) if jpeg_scaling else None
    return pixels_from_image(decode(data, limits, least_side=least_side), spec)


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


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, least_side: int | None = None) -> Image.Image:
    """An upright RGB image of the encoded bytes; raises an ImageError as `pixels_from_bytes` does.

    least_side: of a JPEG, decode as small as leaves both sides that long; None: in full.

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
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_image_pixels:
                raise ImageTooLargeError("pixels", limits.max_image_pixels)
            if image.format == "JPEG":
                if data.count(_START_OF_SCAN) > limits.max_jpeg_scans:
                    raise ImageTooLargeError("scans", limits.max_jpeg_scans)
                if least_side is not None:
                    image.draft(None, (least_side, least_side))
                elif (rgb := _fast_jpeg(data, image.mode)) is not None:
                    return _upright(rgb, image)
            image.load()
            return _upright(_to_rgb(image), image)
    except ImageTooLargeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLargeError("pixels", limits.max_image_pixels) from None
    except Exception as error:
        raise UndecodableImageError from error


def _fast_jpeg(data: bytes, mode: str) -> Image.Image | None:
    """The JPEG in RGB by simplejpeg, whose pixels are Pillow's own; None where it is missing, or has any doubt.

    It refuses what is damaged in the least, and CMYK is not its own: Pillow decides what becomes of those.
    """
    if simplejpeg is None or mode not in ("RGB", "L"):
        return None
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    height, width, _ = decoded.shape
    return Image.frombuffer("RGB", (width, height), decoded, "raw", "RGB", 0, 1)  # shares the memory


def _has_known_signature(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


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


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 - damaged EXIF data beside a sound picture: the picture counts
        return rgb
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if transpose is None else rgb.transpose(transpose)
