"""A bundle and the engine that runs it, as one object: images and β in, labels out.

For programs of one's own; the server batches requests itself and shares what is below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from tureen.bundle import Bundle, load_bundle
from tureen.engines import AUTO, open_engine
from tureen.engines.base import Engine, EngineOptions
from tureen.errors import SingleTokenError
from tureen.machine import available_cpus, default_cache_directory
from tureen.manifest import Precision
from tureen.preprocess import DEFAULT_LIMITS, ImageLimits, Pixels, pixels_from_bytes, pixels_from_image
from tureen.tokens import mix_rows, parse_beta

DEFAULT_TOP_K = 5

ImageSource = bytes | Path | Image.Image | NDArray[np.uint8]


class Prediction(BaseModel):
    """One label and its probability in [0, 1]."""

    label: str
    index: int
    probability: float


class Classification(BaseModel):
    """The most probable labels of one image at one β, the most probable first; β is None where there is one token."""

    beta: float | None
    predictions: list[Prediction]


class Soup:
    """A dual-token model that classifies each image at its own β; a context manager that closes its engine."""

    def __init__(self, bundle: Bundle, engine: Engine, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.bundle = bundle
        self.engine = engine
        self.limits = limits

    @property
    def labels(self) -> list[str]:
        """K names, in the order of the logits."""
        return self.bundle.manifest.labels

    def classify(
        self,
        images: Sequence[ImageSource],
        beta: float | str | Sequence[float | str] | None = None,
        *,
        top_k: int = DEFAULT_TOP_K,
    ) -> list[Classification]:
        """The top labels of each image, all in one batch.

        images: encoded JPEG, PNG or WebP bytes, paths, PIL images, or uint8 RGB arrays (H, W, 3) of any size.
        beta: one for all or one an image, numbers in [0, 1] or "clean" or "robust"; the bundle's default where None.
        Raises ImageError, InvalidBetaError, SingleTokenError for any β where the model has one token, or ValueError
        where images and β differ in number.
        """
        if isinstance(images, bytes | str | Path | Image.Image):
            raise TypeError("images is one image; give a list of them, such as [image]")
        betas = self._betas(beta, len(images))
        if not len(images):
            return []
        logits = self.logits(np.stack([self._pixels(image) for image in images]), betas)
        has_two_tokens = self.bundle.manifest.has_two_tokens
        return [
            Classification(beta=b if has_two_tokens else None, predictions=top_predictions(row, self.labels, top_k))
            for b, row in zip(betas, logits, strict=True)
        ]

    def logits(self, pixels: Pixels, betas: Sequence[float]) -> NDArray[np.float32]:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3), image b at betas[b]."""
        return self.engine.run(pixels, mix_rows(self.bundle.clean_token, self.bundle.robust_token, betas))

    def close(self) -> None:
        """Free the engine; the soup is not used again."""
        self.engine.close()

    def __enter__(self) -> Soup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _betas(self, beta: float | str | Sequence[float | str] | None, count: int) -> list[float]:
        if beta is None:
            return [self.bundle.manifest.default_beta] * count
        if not self.bundle.manifest.has_two_tokens:
            raise SingleTokenError
        if isinstance(beta, str | int | float):
            return [parse_beta(beta)] * count
        if len(beta) != count:
            raise ValueError(f"{count} images and {len(beta)} β: give one β, or one for each image")
        return [parse_beta(b) for b in beta]

    def _pixels(self, image: ImageSource) -> Pixels:
        spec = self.bundle.manifest.preprocess
        if isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, bytes):
            return pixels_from_bytes(image, spec, self.limits)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"an image array is uint8 (H, W, 3), this one is {image.dtype} {image.shape}")
            image = Image.fromarray(image)
        return pixels_from_image(image.convert("RGB"), spec)


def load(
    path: Path | str, *, engine: str = AUTO, precision: Precision | None = None, options: EngineOptions | None = None
) -> Soup:
    """The verified bundle at `path` on the best engine that this machine has, or on the one asked for.

    options: how the engine uses the machine; all its CPUs, and the user's cache, where None.
    Raises BundleError or EngineError, whose messages say what to do.
    """
    bundle = load_bundle(path)
    options = options or EngineOptions(threads=available_cpus(), cache=default_cache_directory())
    return Soup(bundle, open_engine(bundle, engine, precision, options))


def top_predictions(logits: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The top_k labels of one row of logits, float (K,), with their softmax probabilities, the best first.

    Ties keep the order of the labels; a top_k beyond K gives all K. Raises ValueError for a top_k below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; give 1 or more")
    row = probabilities(logits)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return [Prediction(label=labels[i], index=int(i), probability=float(row[i])) for i in best]


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    total: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return total
