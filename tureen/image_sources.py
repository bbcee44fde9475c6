"""Converts the images of a Python program to pixels: paths, encoded bytes, open files, Pillow images and arrays.

Knows no model. `tureen.preprocess` decodes and crops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tureen.errors import ArgumentTypeError, InvalidPixelsError
from tureen.interface.image_bytes import EncodedSource, encoded_bytes, is_encoded_source
from tureen.preprocess import (
    ImageLimits,
    Pixels,
    PreprocessSpec,
    pixels_from_bytes,
    pixels_from_image,
    upright_rgb,
)

ACCEPTED = (
    "a path (str or Path), encoded bytes (bytes, bytearray or memoryview), a file opened in binary mode, a Pillow "
    "image, or a uint8 RGB array (H, W, 3)"
)

ImageSource = EncodedSource | Image.Image | NDArray[np.uint8]


def is_one_image(images: object) -> bool:
    """Returns whether `images` is a single image, even if Python can iterate over it."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3) and images.dtype.kind not in "OU"  # objects or paths: several images
    return isinstance(images, Image.Image) or is_encoded_source(images)


def pixels_from_source(source: ImageSource, spec: PreprocessSpec, limits: ImageLimits) -> Pixels:
    """Returns the pixels, uint8 RGB (image_size, image_size, 3), of an image.

    A file and the Pillow image that Pillow opens from it give the same pixels. Reads at most `limits.max_image_bytes`
    + 1 bytes of a file. Reads an open file from its current position, and does not close it.

    Raises ImageError if the image cannot be read, is damaged, is of another format, or exceeds a limit. Raises
    ArgumentTypeError if `source` is no path, bytes, binary file, Pillow image or array.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise InvalidPixelsError("the array", source, "uint8 RGB (H, W, 3)")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return pixels_from_image(upright_rgb(source, limits), spec)
    if not is_encoded_source(source):
        raise ArgumentTypeError(f"type {type(source).__name__} is no image: give {ACCEPTED}")
    return pixels_from_bytes(encoded_bytes(source, limits.max_image_bytes), spec, limits)
