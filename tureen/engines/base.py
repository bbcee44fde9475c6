"""Defines the interface of engines, and checks that an engine reproduces the golden rows before it serves.

The golden rows are generated images in the bundle, with PyTorch's logits for them. Knows no runtime. Each runtime has a
separate module, which imports the runtime lazily.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import ParityRow, PlanRecord, Precision
from tureen.bundle.token_file import Token
from tureen.errors import EngineError
from tureen.tokens import mix_rows
from tureen.vendor_telemetry import disable_vendor_telemetry

TOKEN_BATCH = 16  # tokens that are checked in one run; small, because an engine keeps memory for its largest batch


@dataclass(frozen=True)
class EngineOptions:
    """The resources that an engine may use: threads, concurrent runs, largest batch and cache directory."""

    threads: int  # CPU threads of all runs together
    streams: int = 1  # concurrent runs, which share the threads; further calls wait
    max_batch: int = 128  # the largest batch of an engine with fixed shapes; a larger batch is split
    cache: Path | None = None  # directory for compiled models and timings; None: nothing is kept

    def __post_init__(self) -> None:
        if min(self.threads, self.streams, self.max_batch) < 1 or self.streams > self.threads:
            raise EngineError(
                f"threads {self.threads}, streams {self.streams} and max_batch {self.max_batch}: give 1 or more for "
                "each, and no more streams than threads"
            )


@dataclass(frozen=True)
class Artefact:
    """The verified file that an engine runs.

    data: the content, an ONNX graph or a compiled plan. plan: the record of the plan; None for a graph.
    """

    data: bytes
    plan: PlanRecord | None = None


class Engine(Protocol):
    """A compiled backbone: the model without its tokens. Several threads may call `run` at the same time."""

    name: str
    precision: Precision
    version: str

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits of a batch, float32 (B, K).

        pixels: uint8 (B, H, W, 3). tokens: float32 (B, D), one token per image.
        """
        ...

    def close(self) -> None:
        """Frees the memory of the engine. The caller must not use the engine afterwards."""
        ...


def import_runtime(module: str, not_installed: str) -> Any:
    """Turns off the usage reports of runtimes, then imports a runtime. Returns its module.

    module: the name of the module. Raises EngineError if the import fails. not_installed: the message if the module is
    absent. After any other failure the message gives the reason.
    """
    disable_vendor_telemetry()
    cause: BaseException
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise EngineError(not_installed) from None
        cause = error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a runtime's import does much, and fails in as many ways
        cause = error
    raise EngineError(f"{module} is installed and its import fails: {type(cause).__name__}: {cause}") from cause


def golden_tolerance(row: ParityRow) -> float:
    """Returns the largest logit difference that `check_golden_rows` allows for an engine.

    row: the entry of the manifest with the differences that export measured for this engine.
    The tolerance is four times the largest logit difference that export measured, and at least 1e-3. This machine may
    add numbers in another order than the machine of export.
    """
    return max(1e-3, 4 * row.max_abs_diff)


def check_golden_rows(engine: Engine, bundle: Bundle) -> float:
    """Returns the largest logit difference between the engine and PyTorch on the golden rows of the bundle.

    Runs all golden images at all β as one batch. Raises EngineError if the bundle has no parity row for this engine and
    precision, if the run fails, or if the difference exceeds `golden_tolerance` or is not a number.
    """
    golden = bundle.golden
    betas = np.repeat(golden.betas, len(golden.pixels))
    pixels = np.tile(golden.pixels, (len(golden.betas), 1, 1, 1))
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, betas)
    expected = golden.logits.reshape(len(pixels), -1)
    tolerance = golden_tolerance(_parity(engine, bundle))
    difference = float(_differences(engine, pixels, tokens, expected).max())
    if not difference <= tolerance:
        raise EngineError(
            f"{engine.name} {engine.precision} does not reproduce the golden rows: largest logit difference "
            f"{difference:.3g}, allowed {tolerance:.3g}; use another engine, or export again on this machine"
        )
    return difference


def check_tokens(engine: Engine, bundle: Bundle, tokens: Sequence[Token]) -> None:
    """Checks that the engine reproduces PyTorch's logits at added tokens, on one golden image for each token.

    At most TOKEN_BATCH tokens share a batch, so that a thousand of them take little time. The tolerance is larger for a
    token with larger logits than the golden rows, by the same factor, because differences grow with logits. Raises
    EngineError, which names the first token with a larger difference, and for the other reasons of `check_golden_rows`.
    """
    tolerance, largest = golden_tolerance(_parity(engine, bundle)), np.abs(bundle.golden.logits).max()
    images = len(bundle.golden.pixels)
    for start in range(0, len(tokens), TOKEN_BATCH):
        batch = tokens[start : start + TOKEN_BATCH]
        rows = np.arange(start, start + len(batch)) % images
        expected = np.stack([token.golden_logits[row] for token, row in zip(batch, rows, strict=True)])
        vectors = np.stack([token.vector for token in batch])
        differences = _differences(engine, bundle.golden.pixels[rows], vectors, expected).max(axis=1)
        allowed = tolerance * np.maximum(1, np.abs(expected).max(axis=1) / largest)
        for token, difference, limit in zip(batch, differences.tolist(), allowed.tolist(), strict=True):
            if not difference <= limit:
                raise EngineError(
                    f"{engine.name} {engine.precision} does not reproduce the logits of the token {token.record.name}: "
                    f"largest difference {difference:.3g}, allowed {limit:.3g}; learn the token again"
                )


def _parity(engine: Engine, bundle: Bundle) -> ParityRow:
    row = bundle.parity(engine.name, engine.precision)
    if row is None:
        name = f"{engine.name} {engine.precision}"
        raise EngineError(f"the bundle does not list {name}: export it with that engine and precision")
    return row


def _differences(
    engine: Engine, pixels: NDArray[np.uint8], tokens: NDArray[np.float32], expected: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns the absolute differences between the logits of the engine and the expected ones, float32 (B, K)."""
    try:
        logits = engine.run(pixels, tokens).reshape(expected.shape)
    except Exception as error:  # such as for a graph of wrong shapes; runtimes have no common exception
        name = f"{engine.name} {engine.precision}"
        raise EngineError(f"{name} cannot run the golden rows: export the model again") from error
    differences: NDArray[np.float32] = np.abs(logits - expected)
    return differences
