"""Applies fifteen common corruptions to pixels, at five severities each.

Source: Hendrycks & Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*, ICLR
2019. The parameters are those of the code that made CIFAR-10-C (images of 32 pixels) and ImageNet-C (224 pixels).

An image with a shorter side below 85 pixels gets the parameters of CIFAR-10-C, because this side is nearer to 32 than
to 224 by ratio. Other images get those of ImageNet-C. Lengths in pixels, such as the radius of a blur, scale with the
shorter side. Below 32 pixels these lengths do not shrink, because a blur by a fraction of a pixel would be no
corruption. Warps and clouds always scale with the image.

Accuracies on these images are close to those on the published files, but not equal. This module rounds results, and the
published code truncates them. This module always mirrors borders. It draws frost, and the published code pastes
photographs. ImageNet-C was also saved as JPEG. The docstrings of the functions name all other differences.

Knows nothing about models, labels or files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import RecipeError
from training.evaluation import filters
from training.evaluation.filters import Floats, Pixels, from_pixels, to_pixels
from training.evaluation.shifts import SHIFTS, Corruption

SEVERITIES = (1, 2, 3, 4, 5)
PIXELS_AT_ONCE = 2**20
"""Number of pixels that `corrupt` processes together. This limits the memory to some hundred megabytes."""

T = TypeVar("T")


def corrupt(pixels: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    """Returns the images after the corruption or shift `name`: uint8 (n, H, W, 3), like `pixels`.

    severity: 1 (slight) to 5. The same arguments give the same images. The noise of an image depends on its index in
    `pixels`. Raises RecipeError for an unknown name or severity.
    """
    corruption = CORRUPTIONS.get(name) or SHIFTS.get(name)
    if corruption is None:
        known = ", ".join([*CORRUPTIONS, *SHIFTS])
        raise RecipeError(f"there is no corruption or shift {name!r}: choose one of {known}")
    if severity not in SEVERITIES:
        raise RecipeError(f"severity must be a whole number from 1 to 5, not {severity!r}")
    generator = np.random.default_rng(seed)
    corrupted = np.empty_like(pixels)
    # Below 32 pixels the margins of the blurs need more memory than the images.
    count = max(1, PIXELS_AT_ONCE // max(32 * 32, pixels.shape[1] * pixels.shape[2]))
    for start in range(0, len(pixels), count):
        corrupted[start : start + count] = corruption(pixels[start : start + count], severity, generator)
    return corrupted


# Noise


def gaussian_noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Adds normal noise, independent in every channel, like that of a sensor in the dark."""
    sigma = _level(pixels, severity, at_32=(0.04, 0.06, 0.08, 0.09, 0.10), at_224=(0.08, 0.12, 0.18, 0.26, 0.38))
    images = from_pixels(pixels)
    return to_pixels(images + np.float32(sigma) * generator.standard_normal(images.shape, dtype=np.float32))


def shot_noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Applies Poisson noise, like that of a sensor that counts few photons."""
    photons = _level(pixels, severity, at_32=(500, 250, 100, 75, 50), at_224=(60, 25, 12, 5, 3))
    return to_pixels((generator.poisson(from_pixels(pixels) * photons) / photons).astype(np.float32))


def impulse_noise(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Sets a random share of the values in each channel to 0 or 255: salt-and-pepper noise in colour."""
    share = _level(pixels, severity, at_32=(0.01, 0.02, 0.03, 0.05, 0.07), at_224=(0.03, 0.06, 0.09, 0.17, 0.27))
    draw = generator.random(pixels.shape, dtype=np.float32)
    return np.where(draw < share / 2, np.uint8(0), np.where(draw < share, np.uint8(255), pixels))


# Blur


def defocus_blur(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blurs like a lens out of focus, by a convolution with a disc."""
    radius, softness = _level(
        pixels,
        severity,
        at_32=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        at_224=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    )
    return to_pixels(
        filters.convolve(from_pixels(pixels), filters.defocus_kernel(radius * _enlargement(pixels), softness))
    )


def glass_blur(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blurs like frosted glass: blurs slightly, replaces each inner pixel by a random neighbour, and blurs again.

    The published loop should swap the pixel and its neighbour, but it only copies the neighbour, because NumPy indexing
    returns views. This function copies too, a whole row at a time. The severity sets the maximum distance of the
    neighbour: `distance` pixels above or left, and one less below or right. With distance 1, as in CIFAR-10-C, the
    result equals that of the published loop. With a larger distance the result differs: the loop can copy a pixel that
    was already replaced in the same row, but this function cannot.
    """
    sigma, distance, rounds = _level(
        pixels,
        severity,
        at_32=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        at_224=((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    )
    enlargement = _enlargement(pixels)
    sigma, distance = sigma * enlargement, max(1, round(distance * enlargement))
    n, height, width, _ = pixels.shape
    image, columns = np.arange(n)[:, None], np.arange(distance + 1, width - distance + 1)
    shuffled = to_pixels(filters.gaussian_blur(from_pixels(pixels), sigma))
    for _ in range(rounds):
        for row in range(height - distance, distance, -1):
            down, across = generator.integers(-distance, distance, size=(2, n, len(columns)))
            shuffled[:, row, columns] = shuffled[image, row + down, columns + across]
    return to_pixels(filters.gaussian_blur(from_pixels(shuffled), sigma))


def motion_blur(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blurs along a line, like a moving camera, in a direction up to 45° from the horizontal."""
    radius, sigma = _level(
        pixels,
        severity,
        at_32=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        at_224=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    )
    angles = np.radians(generator.uniform(-45, 45, size=len(pixels)))
    return to_pixels(filters.convolve(from_pixels(pixels), _motion_kernels(pixels, angles, radius, sigma)))


def zoom_blur(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blurs like a zooming camera: returns the mean of several images, the original twice and magnified copies.

    An image below 32 pixels is magnified more, so that its edge moves by as many pixels as that of a 32-pixel image.
    """
    largest, count = _level(
        pixels,
        severity,
        at_32=((1.06, 7), (1.11, 12), (1.15, 16), (1.20, 21), (1.25, 26)),
        at_224=((1.11, 12), (1.15, 16), (1.20, 11), (1.24, 13), (1.30, 11)),
    )
    growth = (largest - 1) * max(1, 32 / min(pixels.shape[1:3]))
    images = from_pixels(pixels)
    total = 2 * images
    for factor in np.linspace(1, 1 + growth, count)[1:]:
        total += filters.zoom(images, factor)
    return to_pixels(total / np.float32(count + 1))


# Weather


def snow(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Whitens the image, adds motion-blurred flakes, and adds the same flakes rotated by 180°."""
    mean, spread, size, threshold, radius, sigma, kept = _level(
        pixels,
        severity,
        at_32=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        at_224=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    )
    images = from_pixels(pixels)
    grey = filters.luminance(images)
    flakes = mean + spread * generator.standard_normal(grey.shape, dtype=np.float32)
    flakes = filters.zoom(flakes.astype(np.float32), max(1, size * _enlargement(pixels)))
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    angles = np.radians(generator.uniform(-135, -45, size=len(pixels)))
    flakes = filters.convolve(flakes, _motion_kernels(pixels, angles, int(radius), sigma))
    whitened = kept * images + (1 - kept) * np.maximum(images, grey * 1.5 + 0.5)
    return to_pixels(whitened + flakes + flakes[..., ::-1, ::-1])


def frost(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blends each image with a picture of ice, with the published weights.

    The published code uses crops of six photographs. Tureen does not contain these photographs. This function draws the
    ice as the ridges of rough clouds, in bluish white.
    """
    kept, added = _level(
        pixels,
        severity,
        at_32=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        at_224=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    )
    ridges = np.square(1 - np.abs(2 * filters.plasma(pixels.shape[:3], 1.25, generator) - 1))
    ice = ridges[:, None] * np.array([0.85, 0.93, 1.0], dtype=np.float32).reshape(3, 1, 1)
    return to_pixels(kept * from_pixels(pixels) + added * ice)


def fog(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Adds white clouds, then scales the image so that no value exceeds the largest one of the original image."""
    amount, decay = _level(
        pixels,
        severity,
        at_32=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        at_224=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    )
    images = from_pixels(pixels)
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    clouds = filters.plasma(pixels.shape[:3], decay, generator)[:, None]
    return to_pixels((images + amount * clouds) * brightest / (brightest + amount))


def brightness(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Increases the V channel of HSV. Hue and saturation stay the same, so black becomes grey."""
    amount = _level(pixels, severity, at_32=(0.05, 0.1, 0.15, 0.2, 0.3), at_224=(0.1, 0.2, 0.3, 0.4, 0.5))
    images = from_pixels(pixels)
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + np.float32(amount), 1)
    ratios = np.divide(images, value, out=np.ones_like(images), where=value > 0)
    return to_pixels(ratios * brighter)


# Digital


def contrast(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Lowers the contrast: scales the values of each channel towards the mean of the channel over the image."""
    kept = _level(pixels, severity, at_32=(0.75, 0.5, 0.4, 0.3, 0.15), at_224=(0.4, 0.3, 0.2, 0.1, 0.05))
    images = from_pixels(pixels)
    mean = images.mean(axis=(2, 3), keepdims=True)
    return to_pixels((images - mean) * np.float32(kept) + mean)


def elastic_transform(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Applies a random affine map, and displaces every pixel by smoothed noise.

    Interpolates once; the published code interpolates twice. At 224 pixels the displacement is large and smooth at
    severities 1 and 2, and small and rough at 3 to 5. So the distance to the original image does not grow with
    severity, as in the published sets.
    """
    strength, sigma, jitter = _level(
        pixels,
        severity,
        # A strength of 0 means no noise, so its sigma has no effect. The published sigma is 0.
        at_32=((0, 1, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        at_224=((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
    )
    n, height, width, _ = pixels.shape
    share = min(height, width) / _published_side(pixels)
    noise = generator.uniform(-1, 1, size=(n, 2, height, width)).astype(np.float32)
    noise = strength * share * filters.gaussian_blur(noise, sigma * share)
    places = np.indices((height, width)) + noise

    centre, arm = np.array([height // 2, width // 2]), max(1, min(height, width) // 3)
    corners = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + generator.uniform(-jitter * share, jitter * share, size=(n, 3, 2))
    affine = np.linalg.inv(np.column_stack([corners, np.ones(3)])) @ moved
    places -= affine[:, 2][..., None, None]
    rows, columns = np.einsum("nik,nihw->knhw", np.linalg.inv(affine[:, :2]), places, optimize=True)
    return to_pixels(filters.sample(from_pixels(pixels), rows, columns))


def pixelate(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Shrinks the image and enlarges it again, both with a box filter. The result consists of blocks of one colour."""
    share = _level(pixels, severity, at_32=(0.95, 0.9, 0.85, 0.75, 0.65), at_224=(0.6, 0.5, 0.4, 0.3, 0.25))
    height, width = pixels.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))

    def blocks(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _each(pixels, blocks)


def jpeg_compression(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Encodes the image as JPEG at a low quality, and decodes it."""
    quality = _level(pixels, severity, at_32=(80, 65, 58, 50, 40), at_224=(25, 18, 15, 10, 7))

    def recoded(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _each(pixels, recoded)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def _published_side(pixels: Pixels) -> int:
    """Returns the side of the images in CIFAR-10-C, 32, or in ImageNet-C, 224.

    Returns the one that is nearer, by ratio, to the shorter side of `pixels`.
    """
    return 32 if min(pixels.shape[1:3]) ** 2 < 32 * 224 else 224


def _level(pixels: Pixels, severity: int, *, at_32: Sequence[T], at_224: Sequence[T]) -> T:
    return (at_32 if _published_side(pixels) == 32 else at_224)[severity - 1]


def _enlargement(pixels: Pixels) -> float:
    """Returns the factor for published lengths in pixels, such as the radius of a blur.

    The published lengths are for images with the side that `_published_side` returns. The factor is the shorter side of
    `pixels`, but at least 32, divided by this published side.
    """
    return max(32, min(pixels.shape[1:3])) / _published_side(pixels)


def _motion_kernels(pixels: Pixels, angles: NDArray[np.float64], radius: int, sigma: float) -> Floats:
    enlargement = _enlargement(pixels)
    return filters.motion_kernels(angles, max(1, round(radius * enlargement)), sigma * enlargement)


def _each(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
