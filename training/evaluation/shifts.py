"""Applies simple distribution shifts to pixels, at five severities: changes of geometry and colour, and sketches.

The shifts are not a published benchmark. They are a few changes that may favour clean or robust features. Knows nothing
about models, labels or files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.evaluation import filters
from training.evaluation.filters import Pixels, from_pixels, to_pixels

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]
"""A function of pixels uint8 (n, H, W, 3), a severity from 1 to 5 and a generator. Returns pixels of the same shape."""


def rotation(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Rotates about the centre by 10° times the severity, in a random direction. Mirrors the borders."""
    angles = np.radians(10 * severity * generator.choice([-1, 1], size=len(pixels)))[:, None, None]
    rows, columns = _from_centre(pixels)
    cos, sin = np.cos(angles), np.sin(angles)
    return _resampled(pixels, cos * rows - sin * columns, sin * rows + cos * columns)


def translation(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Moves the image by 5 % of the shorter side times the severity, in a random direction. Mirrors the borders."""
    angles = generator.uniform(0, 2 * np.pi, size=(len(pixels), 1, 1))
    distance = 0.05 * severity * min(pixels.shape[1:3])
    rows, columns = _from_centre(pixels)
    return _resampled(pixels, rows + distance * np.sin(angles), columns + distance * np.cos(angles))


def scale(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Scales about the centre by 1 + 0.15·severity, or by the reciprocal, chosen at random for each image.

    Mirrors the borders.
    """
    factors = (1 + 0.15 * severity) ** generator.choice([-1.0, 1.0], size=(len(pixels), 1, 1))
    rows, columns = _from_centre(pixels)
    return _resampled(pixels, rows * factors, columns * factors)


def greyscale(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blends the image with its grey version; the weight of grey is severity / 5. The luminance does not change."""
    images = from_pixels(pixels)
    return to_pixels(_blend(images, filters.luminance(images), severity))


def inversion(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blends the image with its negative; the weight of the negative is severity / 5.

    Contrast is lowest at severities 2 and 3: a fifth of the original contrast. The distance to the original grows with
    severity, but the difficulty may not grow.
    """
    images = from_pixels(pixels)
    return to_pixels(_blend(images, 1 - images, severity))


def sketch(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blends the image with a drawing of its edges, dark on white; the weight of the drawing is severity / 5.

    Similar to ImageNet-Sketch (Wang et al., NeurIPS 2019), which people drew. The luminance is blurred by 1/150 of the
    shorter side. The darkness of an edge is the length of the luminance gradient, relative to the 95 % quantile of this
    length in the image. In a sketch of an 8×8 digit, little of the digit remains.
    """
    images = from_pixels(pixels)
    grey = filters.gaussian_blur(filters.luminance(images), min(pixels.shape[1:3]) / 150)
    down, across = np.gradient(grey, axis=(2, 3))
    steepness = np.hypot(down, across)
    steepest = np.quantile(steepness, 0.95, axis=(1, 2, 3), keepdims=True)
    lines = np.divide(steepness, steepest, out=np.zeros_like(steepness), where=steepest > 0)
    return to_pixels(_blend(images, 1 - np.minimum(lines, 1), severity))


SHIFTS: dict[str, Corruption] = {
    "rotation": rotation,
    "translation": translation,
    "scale": scale,
    "greyscale": greyscale,
    "inversion": inversion,
    "sketch": sketch,
}


def _blend(images: filters.Floats, others: filters.Floats, severity: int) -> filters.Floats:
    return images + np.float32(severity / 5) * (others - images)


def _from_centre(pixels: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the rows (1, H, 1) and the columns (1, 1, W) of the pixels, relative to the centre."""
    height, width = pixels.shape[1:3]
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    return rows[None, :, None], columns[None, None, :]


def _resampled(pixels: Pixels, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Pixels:
    """Returns images uint8 (n, H, W, 3) with the values of `pixels`, interpolated at other positions.

    rows, columns: the positions relative to the centre, in a shape that broadcasts to (n, H, W).
    """
    n, height, width, _ = pixels.shape
    rows = np.broadcast_to(rows + (height - 1) / 2, (n, height, width))
    columns = np.broadcast_to(columns + (width - 1) / 2, (n, height, width))
    return to_pixels(filters.sample(from_pixels(pixels), rows, columns))
