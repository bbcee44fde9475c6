"""Filters and warps batches of images with SciPy, for the corruptions and shifts.

Images are float32 (n, C, H, W) in [0, 1]. Beyond its borders an image is mirrored, with the edge pixel repeated. Knows
nothing about corruptions, severities or models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def from_pixels(pixels: Pixels) -> Floats:
    """Returns pixels uint8 (n, H, W, 3) as float32 (n, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def to_pixels(images: Floats) -> Pixels:
    """Returns images float32 (n, 3, H, W) as uint8 (n, H, W, 3): clipped to [0, 1], scaled by 255 and rounded."""
    levels = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def luminance(images: Floats) -> Floats:
    """Returns the luminance (n, 1, H, W) of colour images (n, 3, H, W), with the weights of ITU-R BT.601."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)
    return (images * weights).sum(axis=1, keepdims=True)


def gaussian_blur(images: Floats, sigma: float) -> Floats:
    """Returns the images (n, C, H, W) blurred by a Gaussian of `sigma` > 0 pixels, cut off at 4 sigma."""
    blurred: Floats = ndimage.gaussian_filter(images, sigma, mode="reflect", truncate=4, axes=(2, 3))
    return blurred


def zoom(images: Floats, factor: float) -> Floats:
    """Returns the images (n, C, H, W) magnified about the centre by `factor` >= 1, bilinearly, at the same size.

    As in the code of Hendrycks & Dietterich, a crop of whole pixels is enlarged to whole pixels. So the centre may move
    by half a pixel, and a factor very near to 1 has no effect.
    """
    top, height = _middle(images.shape[2], factor)
    left, width = _middle(images.shape[3], factor)
    crop = images[..., top : top + height, left : left + width]
    # Rounding may put the last coordinate just beyond the border, where the default mode "constant" draws a black line.
    enlarged = ndimage.zoom(crop, (1, 1, factor, factor), order=1, mode="nearest")
    top, left = ((enlarged.shape[axis] - images.shape[axis]) // 2 for axis in (2, 3))
    return enlarged[..., top : top + images.shape[2], left : left + images.shape[3]]


def convolve(images: Floats, kernels: Floats) -> Floats:
    """Returns each of the images (n, C, H, W) convolved with its kernel.

    kernels: (n, k, k), or (1, k, k) for the same kernel for all images. k is odd.
    """
    reach = kernels.shape[-1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    convolved: Floats = signal.fftconvolve(padded, kernels[:, None], mode="valid", axes=(2, 3))
    return convolved


def defocus_kernel(radius: float, softness: float) -> Floats:
    """Returns the kernel (1, k, k) of a lens out of focus: a disc of `radius` pixels with a blurred edge.

    softness: standard deviation of the blur in pixels. The blur is cut off at one pixel, or at two pixels if the radius
    is above 8, as in the code of Hendrycks & Dietterich.
    """
    reach = int(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    soft = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    weights = np.exp(-0.5 * (soft / softness) ** 2)
    kernel = np.zeros((1, 1, *inside.shape), dtype=np.float32)
    kernel[0, 0] = inside / inside.sum()
    return convolve(kernel, np.outer(weights, weights)[None].astype(np.float32) / weights.sum() ** 2)[0]


def motion_kernels(angles: NDArray[np.float64], radius: int, sigma: float) -> Floats:
    """Returns a kernel of motion blur for each angle, (n, k, k) with k = 4·radius + 1.

    The weights of a kernel are on a line of 2·radius + 1 pixels that starts at the centre and has the given angle. They
    fall along the line like one half of a Gaussian, as in ImageMagick. angles: (n,), in radians; 0 is to the right and
    π/2 is downwards. sigma: standard deviation of the Gaussian in pixels.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    reach = 2 * radius
    rows = reach - np.rint(steps * np.sin(angles)[:, None]).astype(int)
    columns = reach - np.rint(steps * np.cos(angles)[:, None]).astype(int)
    kernels = np.zeros((len(angles), 2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    np.add.at(kernels, (np.arange(len(angles))[:, None], rows, columns), weights / weights.sum())
    return kernels


def sample(images: Floats, rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Floats:
    """Returns the values of images (n, C, H, W) at fractional positions, interpolated bilinearly: (n, C, H', W').

    rows, columns: the positions, (n, H', W').
    """
    return np.stack(
        [
            [ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in image]
            for image, *places in zip(images, rows, columns, strict=True)
        ]
    )


def plasma(shape: tuple[int, int, int], decay: float, generator: np.random.Generator) -> Floats:
    """Returns n grey images of random clouds, (n, H, W), each stretched to [0, 1]. shape: (n, H, W).

    The method is diamond–square on a torus (Fournier, Fussell & Carpenter, *Computer rendering of stochastic models*,
    CACM 1982). Each step adds noise at half the scale of the step before, with 1 / decay² of its amplitude.
    """
    n, height, width = shape
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    clouds = np.zeros((n, size, size), dtype=np.float32)
    step, amplitude = size, 1.0

    def displaced(four: Floats) -> Floats:
        noise = 2 * generator.random(four.shape, dtype=np.float32) - 1
        return four / 4 + np.float32(amplitude) * noise

    while step >= 2:
        half = step // 2
        corner = clouds[:, ::step, ::step]
        beside = corner + np.roll(corner, -1, axis=2)
        below = corner + np.roll(corner, -1, axis=1)
        middle = displaced(beside + np.roll(beside, -1, axis=1))
        clouds[:, half::step, half::step] = middle
        clouds[:, ::step, half::step] = displaced(beside + middle + np.roll(middle, 1, axis=1))
        clouds[:, half::step, ::step] = displaced(below + middle + np.roll(middle, 1, axis=2))
        step, amplitude = half, amplitude / decay**2
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds[:, :height, :width]


def _middle(size: int, factor: float) -> tuple[int, int]:
    """Returns the part of an axis of `size` pixels that `zoom` enlarges: first pixel, and number of pixels."""
    cropped = math.ceil(size / factor)
    return (size - cropped) // 2, cropped
