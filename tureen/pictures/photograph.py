"""Makes a drawn sign look like a photograph: perspective, background, light, blur and noise. Draws no sign itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIDE = 256
"""Height and width of a picture, pixels."""
FILL = 0.8
"""Share of the frame that the sign fills."""
EXPOSURES = (0.22, 1.05)
"""Darkest and brightest light. With these, the mean of a picture varies as in the data set GTSRB (32 × 32)."""
BLURS = (1.0, 7.0)
"""Radii of the blur, pixels: those of signs that measured 120 to 18 pixels in a photograph, as most of GTSRB do."""

_Plane = NDArray[np.float64]
_Colours = NDArray[np.float64] | NDArray[np.int64]


def photograph(sign: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a picture of the sign that looks like a photograph, RGB SIDE × SIDE.

    sign: square RGBA image; the opaque part touches the edges. rng: chooses everything that differs between two
    pictures of one sign.
    """
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    scene = _background(rng, rows)
    pole = 0.055 + 0.03 * rng.random()
    shade = 0.75 + 0.25 * np.cos(columns / pole * 1.3)  # a round pole
    scene = np.where(((abs(columns) < pole) & (rows > 0))[..., None], (shade * rng.uniform(100, 160))[..., None], scene)

    placed = np.asarray(_placed(sign, rng), dtype=np.float64)
    colour, opacity = placed[..., :3], placed[..., 3:] / 255
    dirt = 1 + 0.05 * _noise(rng, (4, 8, 16))
    scene = colour * dirt[..., None] * opacity + scene * (1 - opacity)

    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.2)
    exposure = _log_uniform(rng, EXPOSURES)
    light = exposure * (1 + slope * (math.cos(angle) * columns + math.sin(angle) * rows))
    tint = 1 + rng.uniform(-0.05, 0.05) * np.array([1.0, 0.0, -1.0])  # warm or cold light
    lit = _image(scene * light[..., None] * tint + rng.uniform(0, 14))  # the last term is haze
    blur = _log_uniform(rng, BLURS)
    blurred = np.asarray(lit.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float64)
    grain = rng.normal(0, rng.uniform(2, 5), (SIDE, SIDE, 1)) + rng.normal(0, 2, (SIDE, SIDE, 3))
    return _image(blurred + grain)


def _placed(sign: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns the sign at its place in the picture, RGBA SIDE × SIDE, rotated and tilted by small random angles."""
    angle = math.radians(rng.uniform(-5, 5))
    half = FILL * rng.uniform(0.95, 1.05)
    offset = rng.uniform(-0.03, 0.03, 2)
    corners = []
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        distance = 1 + rng.uniform(-0.04, 0.04)
        turned = (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        corners.append(tuple(offset + half * distance * np.array(turned)))
    side = sign.width
    source = [((x + 1) / 2 * side, (y + 1) / 2 * side) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    target = [((x + 1) / 2 * side, (y + 1) / 2 * side) for x, y in corners]
    coefficients = _perspective(target, source)
    large = sign.transform(sign.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def _perspective(target: list[tuple[float, float]], source: list[tuple[float, float]]) -> tuple[float, ...]:
    """Returns the eight coefficients of the perspective transform by which Pillow maps the points `target` to `source`.

    target, source: four points each, in pixels.
    """
    matrix, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        matrix += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(matrix), np.array(values)).tolist())


def _background(rng: np.random.Generator, rows: _Plane) -> NDArray[np.float64]:
    """Returns a random background, float64 (SIDE, SIDE, 3) in 0–255: sky, leaves, or a road below a dull sky.

    rows: the vertical coordinate of each pixel, from −1 (top) to 1 (bottom).
    """
    kind = rng.integers(3)
    coarse, fine = _noise(rng, (2, 4, 8)), _noise(rng, (12, 24, 48, 96))
    height = (1 - rows) / 2  # 0 at the bottom, 1 at the top
    if kind == 0:
        cloud = np.clip(0.35 + 0.5 * coarse + 0.15 * fine, 0, 1)
        sky = _blend(np.array([196, 214, 232]), np.array([92, 142, 206]), height)
        return _blend(sky, np.array([238, 238, 236]), cloud)
    if kind == 1:
        leaves = _blend(
            np.array([22, 34, 16]), np.array([116, 134, 62]), np.clip(0.45 + 0.3 * coarse + 0.5 * fine, 0, 1)
        )
        return _blend(leaves, np.array([226, 228, 206]), np.clip(2.5 * (fine - 0.45), 0, 1))  # sky between leaves
    road = _blend(np.array([84, 84, 86]), np.array([134, 132, 128]), np.clip(0.5 + 0.2 * coarse + 0.25 * fine, 0, 1))
    sky = _blend(np.array([186, 190, 192]), np.array([214, 216, 218]), np.clip(0.5 + coarse, 0, 1))
    trees = _blend(np.array([40, 48, 38]), np.array([92, 100, 78]), np.clip(0.5 + 0.5 * fine, 0, 1))
    horizon = rng.uniform(0.25, 0.45) + 0.02 * coarse
    above = np.where((height > horizon + 0.22 + 0.16 * coarse)[..., None], sky, trees)
    return np.where((height < horizon)[..., None], road, above)


def _blend(first: _Colours, second: _Colours, share: _Plane) -> NDArray[np.float64]:
    """Returns the mix of two colours for each pixel: `share` 0 gives the first colour, `share` 1 the second."""
    return first * (1 - share[..., None]) + second * share[..., None]


def _noise(rng: np.random.Generator, grids: tuple[int, ...]) -> _Plane:
    """Returns smooth random noise, float64 (SIDE, SIDE), with values of about −1 to 1.

    The noise is a sum of random grids of the sizes `grids`. Each grid has half the weight of the one before.
    """
    total = np.zeros((SIDE, SIDE))
    for octave, size in enumerate(grids):
        grid = Image.fromarray(rng.uniform(-1, 1, (size, size)).astype(np.float32))
        total += np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 2**octave
    return total


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Returns a random number between the bounds, whose logarithm is uniform."""
    low, high = map(math.log, bounds)
    return math.exp(rng.uniform(low, high))


def _image(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))
