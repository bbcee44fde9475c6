"""The Python API: loads a bundle with an engine, and classifies images at any β.

The server batches requests itself, and runs each batch by `Soup.logits`.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import find_bundle
from tureen.bundle.manifest import UNCALIBRATED, Precision
from tureen.engines import AUTO, open_engine
from tureen.engines.base import Engine, EngineOptions
from tureen.errors import (
    ArgumentError,
    ArgumentTypeError,
    BundleError,
    ClosedError,
    ImageError,
    InvalidBetaError,
    InvalidPixelsError,
    InvalidStrengthError,
    SingleTokenError,
)
from tureen.image_sources import ACCEPTED, ImageSource, is_one_image, pixels_from_source
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import DEFAULT_LIMITS, ImageLimits, Pixels
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix_rows, parse_beta, parse_strength

DEFAULT_TOP_K = 5
CHUNK_IMAGES: Final = 16  # decoded and run together by `classify`; bounds its memory

Beta = float | str | np.generic
Strengths = float | np.generic | Iterable[float | np.generic]


class Prediction(BaseModel):
    """One label, its index among the labels, and its probability in [0, 1]."""

    label: str
    index: int
    probability: float


class Classification(BaseModel):
    """The most probable labels of one image at one β.

    predictions: the most probable label first. beta, strength: None if the model has one token. calibrated: whether the
    logits were divided by a fitted temperature before the softmax.
    """

    beta: float | None
    strength: float | None
    calibrated: bool
    predictions: list[Prediction]


class Soup:
    """A loaded bundle with an open engine. It classifies each image of a batch at a separate β.

    temperatures: the logits are divided by them before the softmax. They are those of the bundle, or 1 if `calibrated`
    is False. As a context manager, a soup closes its engine at the end of the block.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, limits: ImageLimits = DEFAULT_LIMITS, *, calibrated: bool = True
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.limits = limits
        self.temperatures = bundle.manifest.temperatures if calibrated else UNCALIBRATED
        self._is_closed = False
        self._load_arguments: _LoadArguments | None = None  # None: not created by `load`

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        default = f"default β {manifest.default_beta:g}" if manifest.has_two_tokens else "one token, no β"
        return (
            f"<tureen.Soup {manifest.name} {manifest.version}, {self.engine.name} {self.engine.precision}, "
            f"{len(manifest.labels)} classes, {default}{', closed' if self._is_closed else ''}>"
        )

    @property
    def labels(self) -> list[str]:
        """Names of the K classes, in the order of the logits."""
        return self.bundle.manifest.labels

    def classify(
        self,
        images: Iterable[ImageSource],
        beta: Beta | Iterable[Beta] | None = None,
        *,
        strength: Strengths | None = None,
        top_k: int = DEFAULT_TOP_K,
    ) -> list[Classification]:
        """Returns the `top_k` most probable labels of each image.

        Decodes and runs CHUNK_IMAGES images at a time, to bound the memory.
        images: an iterable of paths (str or Path), encoded JPEG, PNG or WebP bytes, files opened in binary mode, Pillow
        images, or uint8 RGB arrays (H, W, 3) of any size. `tqdm(images)` shows the progress.
        beta: one β for all images, or one β per image. A β is a number in [0, 1], "clean" or "robust". None: the
        bundle's default.
        strength: instead of `beta`, one strength for all images or one per image. A strength is a number in [0, 1],
        which the bundle maps to a β.

        Raises:
        - ImageError or ArgumentTypeError for the first image that cannot be used; the message has its index
        - ArgumentTypeError if `images` is a single image or no iterable
        - InvalidBetaError for a β that is no number in [0, 1], "clean" or "robust"
        - InvalidStrengthError for a strength that is no number in [0, 1]
        - SingleTokenError if `beta` or `strength` is given and the model has one token
        - ArgumentError if the numbers of images and β differ, if `beta` and `strength` are both given, or if top_k < 1
        - ClosedError if the soup is closed
        """
        self._check_open()
        if is_one_image(images):
            raise ArgumentTypeError("images is one image; give a list of them, such as [image]")
        if not isinstance(images, Iterable):
            raise ArgumentTypeError(f"images is a {type(images).__name__}; give a list, each {ACCEPTED}")
        betas = self._betas(beta, strength)
        if isinstance(betas, list) and isinstance(images, Sized) and len(images) != len(betas):
            raise _count_mismatch(len(images), len(betas))
        manifest = self.bundle.manifest
        numbered = enumerate(images)
        results: list[Classification] = []
        while rows := [self._pixels(index, image) for index, image in islice(numbered, CHUNK_IMAGES)]:
            start = len(results)
            chunk_betas = betas[start : start + len(rows)] if isinstance(betas, list) else [betas] * len(rows)
            if len(chunk_betas) < len(rows):
                raise _count_mismatch(f"more than {start + len(chunk_betas)}", start + len(chunk_betas))
            results += [
                Classification(
                    beta=b if manifest.has_two_tokens else None,
                    strength=manifest.strength.strength_at(b) if manifest.has_two_tokens else None,
                    calibrated=self.temperatures.is_calibrated,
                    predictions=top_predictions(row, self.labels, top_k, temperature),
                )
                for b, row, temperature in zip(
                    chunk_betas,
                    self.logits(np.stack(rows), chunk_betas),
                    self.temperatures.at(chunk_betas).tolist(),
                    strict=True,
                )
            ]
        if isinstance(betas, list) and len(results) < len(betas):
            raise _count_mismatch(len(results), len(betas))
        return results

    def logits(self, pixels: Pixels, betas: Sequence[float]) -> NDArray[np.float32]:
        """Returns the logits, float32 (B, K), of one batch of images. Image b runs at betas[b].

        pixels: uint8 (B, H, W, 3); H and W are the image size of the bundle.

        Raises:
        - InvalidPixelsError if the pixels have another dtype or shape
        - InvalidBetaError for a β that is not a number in [0, 1]
        - ArgumentError if the numbers of images and β differ
        - ClosedError if the soup is closed
        """
        self._check_open()
        size, classes = self.bundle.manifest.preprocess.image_size, len(self.labels)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise InvalidPixelsError("pixels", pixels, f"uint8 (B, {size}, {size}, 3)")
        column = _beta_column(betas, len(pixels))
        if not len(pixels):
            return np.empty((0, classes), np.float32)
        tokens = mix_rows(self.bundle.clean_token, self.bundle.robust_token, column)
        return self.engine.run(np.ascontiguousarray(pixels), tokens)

    def close(self) -> None:
        """Closes the engine and frees its memory. A second call has no effect."""
        if not self._is_closed:
            self._is_closed = True
            self.engine.close()

    def __enter__(self) -> Soup:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the state for pickle: the arguments with which `load` opened this soup, and the name of the model.

        Unpickling loads the bundle from its path again. It raises BundleError if the path holds another model by then.
        This method raises PicklingError if `load` did not open this soup, and ClosedError if this soup is closed.
        """
        self._check_open()
        if self._load_arguments is None:
            raise pickle.PicklingError("only a soup that tureen.load opened can be pickled")
        manifest = self.bundle.manifest
        return _load_again, (self._load_arguments, self.limits, f"{manifest.name} {manifest.version}")

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError

    def _betas(self, beta: Beta | Iterable[Beta] | None, strength: Strengths | None) -> float | list[float]:
        """Returns the β that the arguments of `classify` choose: one number for all images, or a list of one per image.

        `classify` documents the errors: InvalidBetaError, InvalidStrengthError, SingleTokenError and ArgumentError.
        """
        manifest = self.bundle.manifest
        if beta is not None and strength is not None:
            raise ArgumentError("beta and strength exclude each other: give one of them")
        if beta is None and strength is None:
            return manifest.default_beta
        if not manifest.has_two_tokens:
            raise SingleTokenError("beta" if strength is None else "strength")
        value = _to_python(beta if strength is None else strength)

        def parse(one: Any) -> float:
            return parse_beta(one) if strength is None else manifest.beta_of(parse_strength(one))

        if isinstance(value, bytes | bytearray):  # float() would parse their text
            raise InvalidBetaError(value) if strength is None else InvalidStrengthError(value)
        has_several = isinstance(value, Iterable) and not isinstance(value, str)
        return [parse(_to_python(one)) for one in value] if has_several else parse(value)

    def _pixels(self, index: int, image: ImageSource) -> Pixels:
        try:
            return pixels_from_source(image, self.bundle.manifest.preprocess, self.limits)
        except ImageError as error:
            error.index = index
            raise
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"images[{index}]: {error}") from None


@dataclass(frozen=True)
class _LoadArguments:
    """The arguments with which `load` opened a soup. Unpickling the soup passes them to `load` again."""

    path: Path  # absolute
    engine: str
    precision: Precision | None
    options: EngineOptions | None
    calibrated: bool  # whether the probabilities use the temperatures of the bundle


def load(
    path: Path | str,
    *,
    engine: str = AUTO,
    precision: Precision | None = None,
    options: EngineOptions | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    calibrated: bool = True,
) -> Soup:
    """Returns a soup: the bundle at `path`, verified, with an open engine.

    path: the directory of a bundle. If it does not exist, the name of an example that is part of Tureen: "cifar10".
    engine: a name such as "openvino", or "auto" for the fastest engine on this machine. precision: None for the fastest
    one. options: threads, streams, batches and cache of the engine; None: all CPUs and the user's cache. limits: of
    each image. calibrated: whether the probabilities use the temperatures of the bundle, if the bundle has any.

    Raises BundleError if the bundle is missing or damaged, and EngineError if no such engine can run the bundle. Both
    messages say what to do.
    """
    bundle = load_bundle(find_bundle(path))
    engine_options = options or EngineOptions(threads=available_cpus(), cache=default_cache_directory())
    soup = Soup(bundle, open_engine(bundle, engine, precision, engine_options), limits, calibrated=calibrated)
    soup._load_arguments = _LoadArguments(bundle.path.absolute(), engine, precision, options, calibrated)
    return soup


def load_torch(path: Path | str) -> Any:
    """Returns the model of a checkpoint or bundle as `export.torch_soup.TorchSoup`, for attacks in PyTorch.

    Its method `at(beta)` returns a `torch.nn.Module`. The module maps images float (B, 3, H, W) in [0, 1] to logits
    (B, K), as AutoAttack and RobustBench require. Needs the optional dependencies `tureen[export]`.

    Raises CheckpointError or BundleError if `path` is neither a checkpoint nor a bundle, and ExportError if the model
    of a bundle cannot be restored.
    """
    return importlib.import_module("export.torch_soup").load_torch(path)


def _load_again(arguments: _LoadArguments, limits: ImageLimits, model: str) -> Soup:
    soup = load(
        arguments.path,
        engine=arguments.engine,
        precision=arguments.precision,
        options=arguments.options,
        limits=limits,
        calibrated=arguments.calibrated,
    )
    found = f"{soup.bundle.manifest.name} {soup.bundle.manifest.version}"
    if found != model:
        soup.close()
        raise BundleError(f"{arguments.path} holds {found}, and the pickled soup was {model}: load the bundle again")
    return soup


def _count_mismatch(images: int | str, betas: int) -> ArgumentError:
    return ArgumentError(f"{images} images and {betas} β: give one β, or one for each image")


def _to_python(beta: Any) -> Any:
    """Converts a scalar or array of NumPy or torch to a Python number or list. Returns other values unchanged."""
    return beta.tolist() if hasattr(beta, "tolist") else beta


def _beta_column(betas: Sequence[float], count: int) -> NDArray[np.float32]:
    """Returns the β as an array, float32 (count,).

    Raises ArgumentError if there are not `count` β, and InvalidBetaError for a β that is not a number in [0, 1].
    """
    try:
        column = np.asarray(betas, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidBetaError(betas) from None
    if column.shape != (count,):
        raise ArgumentError(f"{count} images and β of shape {column.shape}: give one β for each image")
    is_beta = (column >= CLEAN_BETA) & (column <= ROBUST_BETA)
    if not is_beta.all():
        raise InvalidBetaError(betas[int(np.argmin(is_beta))])
    return column


def top_predictions(
    logits: NDArray[np.float32], labels: Sequence[str], top_k: int, temperature: float = 1.0
) -> list[Prediction]:
    """Returns the `top_k` most probable labels of one image, the most probable first.

    logits: of the image, float (K,). labels: K names. temperature: divides the logits before the softmax. Equal logits
    keep the order of the labels. A top_k above K returns all K labels. Raises ArgumentError if top_k is below 1.
    """
    if top_k < 1:
        raise ArgumentError(f"top_k is {top_k}; give 1 or more")
    row = probabilities(logits, temperature)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return [Prediction(label=labels[i], index=int(i), probability=float(row[i])) for i in best]


def probabilities(logits: NDArray[np.float32], temperatures: float | NDArray[np.float64] = 1.0) -> NDArray[np.float64]:
    """Returns the softmax of logits / temperature over the K classes, float64 (…, K).

    logits: (…, K). temperatures: one number, or one for each image, (…).
    """
    differences = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(differences / np.asarray(temperatures)[..., None])
    total: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return total
