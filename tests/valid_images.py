"""Valid images as cameras and programs write them, in every mode, kind and orientation. Each must be decoded."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
TRANSPOSITIONS = {  # by EXIF orientation: how the stored image is transposed
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def valid_images(picture: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yield (name, file, expected upright RGB image) for an RGB image; lossy formats differ slightly."""
    grey, turned = picture.convert("L"), picture.rotate(180)
    for progressive in (False, True):
        for mode in ("RGB", "L", "CMYK"):
            file = encoded(picture.convert(mode), "JPEG", quality=95, progressive=progressive)
            yield f"JPEG {mode}, {progressive=}", file, (grey if mode == "L" else picture).convert("RGB")
    for subsampling in range(3):
        yield f"JPEG {subsampling=}", encoded(picture, "JPEG", quality=95, subsampling=subsampling), picture
    yield "JPEG of RGB", encoded(picture, "JPEG", quality=95, keep_rgb=True), picture
    yield "JPEG with restarts", encoded(picture, "JPEG", quality=95, restart_marker_rows=1), picture
    yield "JPEG with a film behind it", encoded(picture, "JPEG", quality=95) + b"\xff\xda\xff\xd9" * 999, picture
    yield "two photographs", encoded(picture, "MPO", quality=95, save_all=True, append_images=[turned]), picture
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA"):
        image = picture.convert(mode)
        yield f"PNG {mode}", encoded(image, "PNG"), image.convert("RGB")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    yield "PNG 16 bits", encoded(deep, "PNG"), grey.convert("RGB")
    yield "PNG in motion", encoded(picture, "PNG", save_all=True, append_images=[turned]), picture
    yield "WebP in motion", encoded(picture, "WEBP", save_all=True, append_images=[turned], quality=95), picture
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    white = Image.new("RGB", picture.size, "white")
    for name, file in {
        "PNG": encoded(clear, "PNG"),
        "PNG LA": encoded(clear.convert("LA"), "PNG"),
        "PNG of a palette": encoded(Image.new("P", picture.size), "PNG", transparency=0),
        "WebP": encoded(clear, "WEBP"),
    }.items():
        yield f"{name}, all transparent", file, white
    for value in (*TRANSPOSITIONS, 0, 9, 65_535):
        stored = picture if TRANSPOSITIONS.get(value) is None else picture.transpose(TRANSPOSITIONS[value])
        exif = Image.Exif()
        exif[ORIENTATION] = value
        for file_format in ("JPEG", "PNG", "WEBP"):
            options = {} if file_format == "PNG" else {"quality": 95}
            yield f"{file_format} of orientation {value}", encoded(stored, file_format, exif=exif, **options), picture
    red = Image.new("RGB", (1, 1), "red")
    for file_format in ("JPEG", "PNG", "WEBP"):
        yield f"{file_format} of one pixel", encoded(red, file_format), red


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
