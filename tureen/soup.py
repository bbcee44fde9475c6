"""The Python API: loads a bundle with an engine, and classifies images at any β. `tureen.tokens` mixes the tokens.

The server batches requests itself, and runs each batch by `Soup.logits`.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.manifest import UNCALIBRATED, Manifest, Precision, Temperatures
from tureen.bundle.token_file import Token, read_token
from tureen.engines import AUTO, open_engine
from tureen.engines.base import TOKEN_BATCH, Engine, EngineOptions, check_tokens
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
    TokenFileError,
    TureenError,
)
from tureen.image_sources import ACCEPTED, ImageSource, is_one_image, pixels_from_source
from tureen.interface.predictions import Classification
from tureen.interface.probabilities import probabilities, top_predictions
from tureen.interface.sweeps import Curve, Sweep, changes_between
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import DEFAULT_LIMITS, ImageLimits, Pixels
from tureen.remote.locate import locate_bundle
from tureen.tokens import (
    CLEAN_BETA,
    Mix,
    beta_grid,
    parse_beta,
    parse_mix,
    parse_strength,
    strength_grid,
    token_mix,
    token_rows,
)

DEFAULT_TOP_K = 5
DEFAULT_SWEEP: Final = "0:1:0.1"
CHUNK_IMAGES: Final = 16  # decoded and run together by `classify`; bounds its memory

Beta = float | str | np.generic
Strengths = float | np.generic | Iterable[float | np.generic]
MixSource = str | Mapping[str, float]
_Choice = TypeVar("_Choice")


class Soup:
    """A loaded bundle with an open engine. It classifies each image of a batch at a separate β.

    temperatures: the logits are divided by them before the softmax. They are those of the bundle, or 1 if `calibrated`
    is False. tokens: by name, those of the bundle and the added ones, each float32 (D,). As a context manager, a soup
    closes its engine at the end of the block.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        limits: ImageLimits = DEFAULT_LIMITS,
        *,
        calibrated: bool = True,
        tokens: Iterable[Token] = (),
    ) -> None:
        """tokens: to add to those of the bundle. Closes the engine and raises if `add_tokens` raises."""
        self.bundle = bundle
        self.engine = engine
        self.limits = limits
        self.temperatures = bundle.manifest.temperatures if calibrated else UNCALIBRATED
        self.tokens = dict(bundle.tokens)
        self._is_closed = False
        self._load_arguments: _LoadArguments | None = None  # None: not created by `load`
        try:
            self.add_tokens(chain(bundle.learned_tokens, tokens))
        except TureenError:
            self.close()
            raise

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
        token: str | Iterable[str] | None = None,
        mix: MixSource | Iterable[MixSource] | None = None,
        normalize: bool = True,
        top_k: int = DEFAULT_TOP_K,
    ) -> list[Classification]:
        """Returns the `top_k` most probable labels of each image.

        Decodes and runs CHUNK_IMAGES images at a time, to bound the memory. Each of beta, strength, token and mix is
        one value for all images, or an iterable of one per image.
        images: an iterable of paths (str or Path), encoded JPEG, PNG or WebP bytes, files opened in binary mode, Pillow
        images, or uint8 RGB arrays (H, W, 3) of any size. `tqdm(images)` shows the progress.
        beta: a number in [0, 1], "clean" or "robust". None: the bundle's default.
        strength: instead of `beta`, a number in [0, 1], which the bundle maps to a β.
        token: the name of a token. It takes the place of the clean token. With `beta` or `strength` it is mixed with
        the robust token; without them it is used alone.
        mix: instead of all these, weights of tokens by name, such as {"fog": 0.7, "robust": 0.3} or
        "fog:0.7,robust:0.3". normalize: whether to divide the weights of a mix by their sum.

        Raises:
        - ImageError or ArgumentTypeError for the first image that cannot be used; the message has its index
        - ArgumentTypeError if `images` is a single image or no iterable
        - InvalidBetaError for a β that is no number in [0, 1], "clean" or "robust"
        - InvalidStrengthError for a strength that is no number in [0, 1]
        - InvalidMixError for a mix or a name that `parse_mix` refuses, and UnknownTokenError for an unknown token
        - SingleTokenError if a β or a strength is chosen and the model has one token
        - ArgumentError if the numbers of images and β differ, if arguments exclude each other, or if top_k < 1
        - ClosedError if the soup is closed
        """
        self._check_open()
        if is_one_image(images):
            raise ArgumentTypeError("images is one image; give a list of them, such as [image]")
        if not isinstance(images, Iterable):
            raise ArgumentTypeError(f"images is a {type(images).__name__}; give a list, each {ACCEPTED}")
        choices = self._choices(beta, strength, token, mix, normalize)
        if isinstance(choices, list) and isinstance(images, Sized) and len(images) != len(choices):
            raise _count_mismatch(len(images), len(choices))
        numbered = enumerate(images)
        results: list[Classification] = []
        while rows := [self._pixels(index, image) for index, image in islice(numbered, CHUNK_IMAGES)]:
            start = len(results)
            chunk = choices[start : start + len(rows)] if isinstance(choices, list) else [choices] * len(rows)
            if len(chunk) < len(rows):
                raise _count_mismatch(f"more than {start + len(chunk)}", start + len(chunk))
            logits = self.logits(
                np.stack(rows), [one.vector(self.tokens) if isinstance(one, Mix) else one for one in chunk]
            )
            results += [self._classification(choice, row, top_k) for choice, row in zip(chunk, logits, strict=True)]
        if isinstance(choices, list) and len(results) < len(choices):
            raise _count_mismatch(len(results), len(choices))
        return results

    def sweep(
        self,
        image: ImageSource,
        betas: str | Iterable[Beta] | None = None,
        *,
        strengths: str | Iterable[float | np.generic] | None = None,
        top_k: int = DEFAULT_TOP_K,
    ) -> Sweep:
        """Returns the labels of one image at many β, with the curves of the `top_k` most probable labels.

        image: as one of `classify`. betas: a grid such as "0:1:0.1", a list such as "0,0.5,robust", or an iterable of
        what `classify` takes as β. None: "0:1:0.1". strengths: instead of `betas`, a grid or an iterable of strengths.
        The result has each β once, in ascending order. `plot()` of the result draws it.

        Raises:
        - ImageError or ArgumentTypeError for an image that cannot be used
        - InvalidBetaError or InvalidStrengthError for a value that is not in [0, 1], or another form of a grid
        - SingleTokenError if the model has one token
        - ArgumentError for no β, for both betas and strengths, or if top_k < 1
        - ClosedError if the soup is closed
        """
        self._check_open()
        manifest = self.bundle.manifest
        if betas is not None and strengths is not None:
            raise ArgumentError("betas and strengths exclude each other: give one of them")
        if not manifest.has_two_tokens:
            raise SingleTokenError("betas" if strengths is None else "strengths")
        given: Any = DEFAULT_SWEEP if betas is None and strengths is None else betas if strengths is None else strengths
        if isinstance(given, str):
            parsed = beta_grid(given) if strengths is None else [manifest.beta_of(one) for one in strength_grid(given)]
        else:
            each = self._betas(given, None) if strengths is None else self._betas(None, given)
            parsed = each if isinstance(each, list) else [each]
        if not parsed:
            raise ArgumentError("there is no β: give at least one")
        ascending = sorted(set(parsed))
        pixels = pixels_from_source(image, manifest.preprocess, self.limits)[None]
        chunks = [ascending[start : start + CHUNK_IMAGES] for start in range(0, len(ascending), CHUNK_IMAGES)]
        logits = [self.logits(np.repeat(pixels, len(chunk), axis=0), chunk) for chunk in chunks]
        return sweep_result(manifest, self.temperatures, ascending, np.concatenate(logits), top_k)

    def add_tokens(self, tokens: Iterable[Token], *, removed: Collection[str] = ()) -> None:
        """Adds tokens, which `classify` then takes by their names. After an error nothing has changed.

        Takes TOKEN_BATCH tokens at a time from `tokens`, and keeps only their vectors, to bound the memory.
        removed: names of added tokens to remove at the same time. An added token may have such a name. Raises
        TokenFileError if a token was learned for another backbone, or if its name is taken. Raises EngineError if the
        engine does not reproduce PyTorch's logits at a token.
        """
        added = {name: vector for name, vector in self.tokens.items() if name not in removed}
        remaining = iter(tokens)
        while batch := list(islice(remaining, TOKEN_BATCH)):
            for token in batch:
                token.check_bundle(self.bundle)
                if token.record.name in added:
                    raise TokenFileError(f"the soup already has a token {token.record.name!r}: rename one of them")
                added[token.record.name] = token.vector.copy()  # the array shares the memory of the file's content
            check_tokens(self.engine, self.bundle, batch)
        self.tokens = added  # a new dictionary: a request may hold the one before

    def check_token(self, token: Token, replaceable: Collection[str] = ()) -> None:
        """Raises the error that `add_tokens` would raise for the token. Adds nothing.

        replaceable: names of added tokens that the token may have.
        """
        token.check_bundle(self.bundle)
        name = token.record.name
        if name in self.tokens and name not in replaceable:
            raise TokenFileError(f"the soup already has a token {name!r}: rename one of them")
        check_tokens(self.engine, self.bundle, [token])

    def logits(
        self, pixels: Pixels, betas: Sequence[float | NDArray[np.float32]] | NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Returns the logits, float32 (B, K), of one batch of images. Image b runs at betas[b].

        pixels: uint8 (B, H, W, 3); H and W are the image size of the bundle. betas: for each image a β in [0, 1], or a
        token, float32 (D,), such as `Mix.vector` returns.

        Raises:
        - InvalidPixelsError if the pixels have another dtype or shape
        - InvalidBetaError for a β that is not a number in [0, 1]
        - ArgumentError if the numbers of images and β differ, or if a token has another dtype or shape
        - ClosedError if the soup is closed
        """
        self._check_open()
        size, classes = self.bundle.manifest.preprocess.image_size, len(self.labels)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise InvalidPixelsError("pixels", pixels, f"uint8 (B, {size}, {size}, 3)")
        tokens = token_rows(self.bundle.clean_token, self.bundle.robust_token, betas, len(pixels))
        if not len(pixels):
            return np.empty((0, classes), np.float32)
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

    def _choices(
        self,
        beta: Beta | Iterable[Beta] | None,
        strength: Strengths | None,
        token: str | Iterable[str] | None,
        mix: MixSource | Iterable[MixSource] | None,
        normalize: bool,
    ) -> float | Mix | list[float | Mix]:
        """Returns what the arguments of `classify` choose: one value for all images, or a list of one per image.

        `classify` documents the errors, except those of images.
        """
        given = {"beta": beta, "strength": strength, "token": token, "mix": mix}
        names = [name for name, value in given.items() if value is not None]
        if {"beta", "strength"} <= set(names) or ("mix" in names and len(names) > 1):
            raise ArgumentError(f"{' and '.join(names)} exclude each other: give one of them")
        if mix is not None:
            return _each(mix, str | Mapping, lambda one: self._mix(parse_mix(one, normalize=normalize)))
        if token is None:
            return self._betas(beta, strength)  # type: ignore[return-value] # a list of β alone
        betas = CLEAN_BETA if beta is None and strength is None else self._betas(beta, strength)
        if isinstance(betas, list):
            tokens = [token] * len(betas) if isinstance(token, str) else list(token)
            if len(tokens) != len(betas):
                raise ArgumentError(f"{len(tokens)} tokens and {len(betas)} β: give one β, or one for each token")
            return [self._mix(token_mix(name, one)) for name, one in zip(tokens, betas, strict=True)]
        return _each(token, str, lambda name: self._mix(token_mix(name, betas)))

    def _mix(self, choice: float | Mix) -> float | Mix:
        """Returns the choice. Raises UnknownTokenError if the soup does not have a token of a mix."""
        if isinstance(choice, Mix):
            choice.check_names(self.tokens)
        return choice

    def _betas(self, beta: Beta | Iterable[Beta] | None, strength: Strengths | None) -> float | list[float]:
        manifest = self.bundle.manifest
        if beta is None and strength is None:
            return manifest.default_beta
        if not manifest.has_two_tokens:
            raise SingleTokenError("beta" if strength is None else "strength")
        value = _to_python(beta if strength is None else strength)

        def parse(one: Any) -> float:
            return parse_beta(one) if strength is None else manifest.beta_of(parse_strength(one))

        if isinstance(value, bytes | bytearray):  # float() would parse their text
            raise InvalidBetaError(value) if strength is None else InvalidStrengthError(value)
        return _each(value, str, lambda one: parse(_to_python(one)))

    def _classification(self, choice: float | Mix, logits: NDArray[np.float32], top_k: int) -> Classification:
        manifest = self.bundle.manifest
        has_beta, is_mix = manifest.has_two_tokens, isinstance(choice, Mix)
        beta = choice.beta if isinstance(choice, Mix) else choice
        temperature = 1.0 if is_mix else float(self.temperatures.at([beta])[0])
        return Classification(
            beta=beta if has_beta else None,
            strength=manifest.strength.strength_at(beta) if has_beta and not is_mix else None,
            mix=dict(choice.weights) if isinstance(choice, Mix) else None,
            calibrated=self.temperatures.is_calibrated and not is_mix,
            predictions=top_predictions(logits, self.labels, top_k, temperature),
        )

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
    tokens: tuple[Token, ...]


def load(
    path: Path | str,
    *,
    engine: str = AUTO,
    precision: Precision | None = None,
    options: EngineOptions | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    calibrated: bool = True,
    tokens: Iterable[Path | str | Token] = (),
) -> Soup:
    """Returns a soup: the bundle at `path`, verified, with an open engine.

    path: the directory of a bundle, or else the name of an example that is part of Tureen: "cifar10".
    engine: a name such as "openvino", or "auto" for the fastest engine on this machine. precision: None for the fastest
    one. options: threads, streams, batches and cache of the engine; None: all CPUs and the user's cache. limits: of
    each image. calibrated: whether the probabilities use the temperatures of the bundle, if the bundle has any. tokens:
    token files of `tureen adapt`, whose tokens are added to those of the bundle.

    Raises BundleError if the bundle is missing or damaged, EngineError if no such engine can run the bundle, and
    TokenFileError if a token is damaged, was learned for another backbone, or has a name that is taken. The messages
    say what to do.
    """
    bundle = load_bundle(locate_bundle(path))
    engine_options = options or EngineOptions(threads=available_cpus(), cache=default_cache_directory())
    if isinstance(tokens, str | Path | Token):
        raise ArgumentTypeError("tokens is one token; give a list of token files, such as [path]")
    added = tuple(_token(one) for one in tokens)
    for token in added:
        token.check_bundle(bundle)  # before the engine is opened, which takes longer
    opened = open_engine(bundle, engine, precision, engine_options)
    soup = Soup(bundle, opened, limits, calibrated=calibrated, tokens=added)
    soup._load_arguments = _LoadArguments(bundle.path.absolute(), engine, precision, options, calibrated, added)
    return soup


def _token(source: Any) -> Token:
    if isinstance(source, Token):
        return source
    if isinstance(source, str | Path):
        return read_token(Path(source))
    raise ArgumentTypeError(f"tokens has a {type(source).__name__}; give the paths of token files")


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
        tokens=arguments.tokens,
    )
    found = f"{soup.bundle.manifest.name} {soup.bundle.manifest.version}"
    if found != model:
        soup.close()
        raise BundleError(f"{arguments.path} holds {found}, and the pickled soup was {model}: load the bundle again")
    return soup


def _count_mismatch(images: int | str, betas: int) -> ArgumentError:
    return ArgumentError(f"{images} images and {betas} β: give one β, or one for each image")


def _each(value: Any, one: Any, parse: Callable[[Any], _Choice]) -> _Choice | list[_Choice]:
    """Returns the parsed value; of an iterable, the list of its parsed values. one: the types that are one value."""
    has_several = isinstance(value, Iterable) and not isinstance(value, one)
    return [parse(each) for each in value] if has_several else parse(value)


def _to_python(beta: Any) -> Any:
    """Converts a scalar or array of NumPy or torch to a Python number or list. Returns other values unchanged."""
    return beta.tolist() if hasattr(beta, "tolist") else beta


def sweep_result(
    manifest: Manifest, temperatures: Temperatures, betas: list[float], logits: NDArray[np.float32], top_k: int
) -> Sweep:
    """Returns the labels of one image at many β, with the curves of the top_k labels of the highest probabilities.

    betas: ascending. logits: of the image at each β, float32 (number of β, K). temperatures: divide the logits before
    the softmax. Raises ArgumentError if top_k is below 1.
    """
    if top_k < 1:
        raise ArgumentError(f"top_k is {top_k}; give 1 or more")
    labels = manifest.labels
    by_beta = probabilities(logits, temperatures.at(betas))
    answers = [labels[index] for index in logits.argmax(axis=1)]
    highest = np.argsort(-by_beta.max(axis=0), kind="stable")[:top_k]
    return Sweep(
        calibrated=temperatures.is_calibrated,
        betas=betas,
        strengths=[manifest.strength.strength_at(beta) for beta in betas],
        answers=answers,
        curves=[Curve(label=labels[i], index=int(i), probabilities=by_beta[:, i].tolist()) for i in highest],
        changes=changes_between(betas, answers),
    )
