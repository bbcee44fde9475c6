"""The seam between Tureen and whatever runs a backbone, and the proof that every engine owes before it serves.

Knows no runtime; each one's module holds everything about it and imports it lazily.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import ParityRow, PlanRecord, Precision
from tureen.errors import EngineError
from tureen.tokens import mix_rows
from tureen.vendor_telemetry import disable_vendor_telemetry


@dataclass(frozen=True)
class EngineOptions:
    """How an engine uses the machine."""

    threads: int  # CPU threads of all its runs together
    streams: int = 1  # runs at a time, among which the threads are divided; more calls than that wait
    max_batch: int = 128  # where shapes are fixed beforehand: the largest; a larger batch is run in parts
    cache: Path | None = None  # directory that keeps compiled models and timings between processes; None: nowhere

    def __post_init__(self) -> None:
        if min(self.threads, self.streams, self.max_batch) < 1 or self.streams > self.threads:
            raise EngineError(
                f"threads {self.threads}, streams {self.streams} and max_batch {self.max_batch} are 1 or more, "
                "and there are no more streams than threads"
            )


@dataclass(frozen=True)
class Artefact:
    """The file that an engine runs, verified; and where it is a compiled plan, what that is bound to."""

    data: bytes
    plan: PlanRecord | None = None


class Engine(Protocol):
    """A compiled backbone. `run` may be called from any thread, one call at a time or several."""

    name: str
    precision: Precision
    version: str

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3), each row with its own token, float32 (B, D)."""
        ...

    def close(self) -> None:
        """Free the runtime's memory; the engine is not used again."""
        ...


def import_runtime(module: str, not_installed: str) -> Any:
    """The module of a runtime, which sends no reports to its maker.

    Raises EngineError: `not_installed` where the module is absent, else why its import failed.
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
    """The largest logit difference at which an engine still counts as the one whose parity was measured.

    Another CPU sums in another order: four times the difference that export measured, and never less than 1e-3.
    """
    return max(1e-3, 4 * row.max_abs_diff)


def check_golden_rows(engine: Engine, bundle: Bundle) -> float:
    """Run the golden rows, every β in one batch, and return the largest logit difference from PyTorch's.

    Raises EngineError where the bundle does not vouch for this engine and precision, or where the difference is
    beyond `golden_tolerance` or not a number.
    """
    name = f"{engine.name} {engine.precision}"
    row = bundle.parity(engine.name, engine.precision)
    if row is None:
        raise EngineError(f"the bundle does not vouch for {name}: export it with that engine and precision")
    golden = bundle.golden
    betas = np.repeat(golden.betas, len(golden.pixels))
    pixels = np.tile(golden.pixels, (len(golden.betas), 1, 1, 1))
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, betas)
    try:
        logits = engine.run(pixels, tokens).reshape(golden.logits.shape)
    except Exception as error:  # of a graph that lies about its shapes; the runtimes' exceptions have no common base
        raise EngineError(f"{name} cannot run the golden rows: export the model again") from error
    difference = float(np.abs(logits - golden.logits).max())
    if not difference <= golden_tolerance(row):
        raise EngineError(
            f"{name} does not reproduce the golden rows: largest logit difference {difference:.3g}, "
            f"allowed {golden_tolerance(row):.3g}; use another engine, or export again on this machine"
        )
    return difference
