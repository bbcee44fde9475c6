"""Simple distribution shifts at five severities, as functions of pixels: the picture moved, drained of colour, drawn.

Not a published benchmark: the fewest and plainest changes under which the balance between clean and robust features may
tip. Knows nothing about models, labels or files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.evaluation import filters
from training.evaluation.filters import Pixels, from_pixels, to_pixels

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]
"""(uint8 (n, H, W, 3), severity from 1 to 5, generator) to uint8 (n, H, W, 3), the argument left as it was."""


def rotation(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Turned about the centre by 10° a severity, either way by even odds; mirrored beyond the borders."""
    angles = np.radians(10 * severity * generator.choice([-1, 1], size=len(pixels)))[:, None, None]
    rows, columns = _from_centre(pixels)
    cos, sin = np.cos(angles), np.sin(angles)
    return _redrawn(pixels, cos * rows - sin * columns, sin * rows + cos * columns)


def translation(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Moved by 5 % of the shorter side a severity, in any direction; mirrored beyond the borders."""
    angles = generator.uniform(0, 2 * np.pi, size=(len(pixels), 1, 1))
    distance = 0.05 * severity * min(pixels.shape[1:3])
    rows, columns = _from_centre(pixels)
    return _redrawn(pixels, rows + distance * np.sin(angles), columns + distance * np.cos(angles))


def scale(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Magnified or reduced about the centre, by even odds, by a factor of 1 + 0.15 a severity; mirrored around."""
    factors = (1 + 0.15 * severity) ** generator.choice([-1.0, 1.0], size=(len(pixels), 1, 1))
    rows, columns = _from_centre(pixels)
    return _redrawn(pixels, rows * factors, columns * factors)


def greyscale(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A fifth of the colour removed a severity, luminance kept; a grey picture stays as it is."""
    images = from_pixels(pixels)
    return to_pixels(_blend(images, filters.luminance(images), severity))


def inversion(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A fifth of the way to the negative a severity: 1 and 2 grey the picture, 3 and 4 its negative, 5 is the negative.

    Contrast is lowest at 2 and 3, a fifth of the original's: the distance grows with severity, the difficulty need not.
    """
    images = from_pixels(pixels)
    return to_pixels(_blend(images, 1 - images, severity))


def sketch(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """A fifth of the way a severity to a drawing: edges, as dark as they are steep, on white.

    In the spirit of ImageNet-Sketch (Wang et al., NeurIPS 2019), whose pictures people drew. An edge's steepness is
    the length of the gradient of the luminance, blurred by 1/150 of the side, relative to the image's steepest
    twentieth. On 8×8 digits little of the digit is left.
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
    """Rows (1, H, 1) and columns (1, 1, W) of every pixel, counted from the centre."""
    height, width = pixels.shape[1:3]
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    return rows[None, :, None], columns[None, None, :]


def _redrawn(pixels: Pixels, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Pixels:
    """Each pixel (n, H, W) taken from these coordinates, counted from the centre."""
    n, height, width, _ = pixels.shape
    rows = np.broadcast_to(rows + (height - 1) / 2, (n, height, width))
    columns = np.broadcast_to(columns + (width - 1) / 2, (n, height, width))
    return to_pixels(filters.sample(from_pixels(pixels), rows, columns))
