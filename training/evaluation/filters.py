"""Filters and warps on batches of images: what corruptions and shifts are made of.

Images are float32 (n, C, H, W) in [0, 1] here; beyond their borders they are mirrored, the edge pixel repeated. Knows
nothing about corruptions, severities or models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def from_pixels(pixels: Pixels) -> Floats:
    """uint8 (n, H, W, 3) to float32 (n, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def to_pixels(images: Floats) -> Pixels:
    """float32 (n, 3, H, W) to uint8 (n, H, W, 3): clipped to [0, 1] and rounded to the nearest level."""
    levels = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def luminance(images: Floats) -> Floats:
    """The grey (n, 1, H, W) of colour images (n, 3, H, W): weights of ITU-R BT.601."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)
    return (images * weights).sum(axis=1, keepdims=True)


def separable(images: Floats, rows: Floats, columns: Floats) -> Floats:
    """Apply a linear map along each axis: rows (H', H) and columns (W', W) to images (…, H, W) give (…, H', W')."""
    return rows @ (images @ columns.T)


def gaussian_blur(images: Floats, sigma: float) -> Floats:
    """Gaussian blur of standard deviation `sigma` > 0 pixels, cut off at four of them."""
    height, width = images.shape[-2:]
    return separable(images, _gaussian(height, sigma), _gaussian(width, sigma))


def zoom(images: Floats, factor: float) -> Floats:
    """Magnify about the centre by `factor` >= 1, bilinearly, at the same size (n, C, H, W).

    As Hendrycks & Dietterich's code: a crop of whole pixels is enlarged to whole pixels, so the centre may be half a
    pixel off, and a factor too near to 1 does nothing.
    """
    height, width = images.shape[-2:]
    return separable(images, _magnifier(height, factor), _magnifier(width, factor))


def convolve(images: Floats, kernels: Floats) -> Floats:
    """Images (n, C, H, W) convolved with a kernel of their own each (n, k, k), or all with one (1, k, k); k odd."""
    reach = kernels.shape[-1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    size = padded.shape[-2:]
    spectrum = np.fft.rfft2(padded) * np.fft.rfft2(kernels[:, None], s=size)
    convolved = np.fft.irfft2(spectrum, s=size)[..., 2 * reach :, 2 * reach :]
    return convolved.astype(np.float32, copy=False)


def disc(radius: float, softness: float) -> Floats:
    """The kernel (1, k, k) of a lens out of focus: a disc of `radius` pixels, its edge blurred by `softness` pixels.

    The blur reaches one pixel, or two from a radius of more than 8, as in Hendrycks & Dietterich's code.
    """
    reach = int(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    soft = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    weights = np.exp(-0.5 * (soft / softness) ** 2)
    kernel = np.zeros((1, 1, *inside.shape), dtype=np.float32)
    kernel[0, 0] = inside / inside.sum()
    return convolve(kernel, np.outer(weights, weights)[None].astype(np.float32) / weights.sum() ** 2)[0]


def trails(angles: NDArray[np.float64], radius: int, sigma: float) -> Floats:
    """Kernels (n, k, k) of motion: half a Gaussian of `sigma` pixels, 2·radius + 1 long, to one side along each angle.

    As ImageMagick's motion blur. angles: (n,) in radians, 0 to the right and π/2 downwards.
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
    """Read images (n, C, H, W) at fractional coordinates (n, H', W') of theirs, bilinearly: (n, C, H', W')."""
    n, _, height, width = images.shape
    top, row_weight = _neighbours(rows, height)
    left, column_weight = _neighbours(columns, width)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    image = np.arange(n)[:, None, None]
    colours = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    down, across = row_weight[..., None], column_weight[..., None]
    upper = colours[image, top, left] * (1 - across) + colours[image, top, right] * across
    lower = colours[image, bottom, left] * (1 - across) + colours[image, bottom, right] * across
    return np.ascontiguousarray((upper * (1 - down) + lower * down).transpose(0, 3, 1, 2))


def plasma(shape: tuple[int, int, int], decay: float, generator: np.random.Generator) -> Floats:
    """Random clouds (n, H, W), each stretched to [0, 1]: diamond–square on a torus, whose noise starts at the size of
    the whole and falls by decay² at each halving.

    Source: Fournier, Fussell & Carpenter, *Computer rendering of stochastic models*, CACM 1982.
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


def _gaussian(size: int, sigma: float) -> Floats:
    """Gaussian blur along one axis, as a matrix (size, size)."""
    offsets = np.arange(-round(4 * sigma), round(4 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((size, size), dtype=np.float32)
    output = np.arange(size)[:, None]
    np.add.at(matrix, (output, np.rint(_mirrored(output + offsets, size)).astype(int)), weights / weights.sum())
    return matrix


def _magnifier(size: int, factor: float) -> Floats:
    """Bilinear magnification along one axis, as a matrix (size, size): the middle ⌈size / factor⌉ pixels, enlarged."""
    cropped = math.ceil(size / factor)
    enlarged = round(cropped * factor)
    first, trimmed = (size - cropped) // 2, (enlarged - size) // 2
    output = np.arange(size)
    low, weight = _neighbours(first + (trimmed + output) * (cropped - 1) / max(1, enlarged - 1), size)
    matrix = np.zeros((size, size), dtype=np.float32)
    np.add.at(matrix, (output, low), 1 - weight)
    np.add.at(matrix, (output, np.minimum(low + 1, size - 1)), weight)
    return matrix


def _neighbours(coordinates: NDArray[np.floating], size: int) -> tuple[NDArray[np.intp], Floats]:
    """The pixel at or before each coordinate, and the weight of the one after it."""
    inside = np.clip(_mirrored(coordinates, size), 0, size - 1)
    low = inside.astype(np.intp)
    return low, (inside - low).astype(np.float32)


def _mirrored(coordinates: NDArray[np.floating] | NDArray[np.integer], size: int) -> NDArray[np.floating]:
    """Coordinates of pixel centres folded back into [−½, size − ½]."""
    folded: NDArray[np.floating] = size - 0.5 - np.abs((coordinates + 0.5) % (2 * size) - size)
    return folded
