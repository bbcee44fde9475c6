"""Opens the engine that runs a bundle's backbone: the one asked for, or the fastest that this machine has.

Every engine opened here has reproduced the bundle's golden rows.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tureen.bundle import (
    BACKBONE,
    Bundle,
    EngineName,
    FileName,
    ParityRow,
    PlanRecord,
    Precision,
    graph_name,
    plan_name,
)
from tureen.engines.base import Artefact, Engine, EngineOptions, reproduce_golden
from tureen.errors import BundleError, EngineError
from tureen.machine import available_cpus

AUTO = "auto"
RACE_BATCH = 8
RACE_RUNS = 15
LOW_PRECISION_HANDICAP = 1.1  # a lower precision has to be this much faster to be worth its error

logger = logging.getLogger("tureen.engines")


@dataclass(frozen=True)
class Runtime:
    """What can run a backbone: in which precisions, each from which file of the bundle, and how it is opened."""

    files: dict[Precision, FileName]
    open: Callable[[Artefact, Precision, EngineOptions], Engine]


def default_options() -> EngineOptions:
    """All CPUs that this process may use, one run at a time, nothing kept."""
    return EngineOptions(threads=available_cpus())


def compile_engine(
    data: bytes,
    engine: str,
    precision: Precision = "fp32",
    options: EngineOptions | None = None,
    *,
    plan: PlanRecord | None = None,
) -> Engine:
    """The backbone in `data` opened by the engine of that name, not yet proven against any bundle.

    data: an ONNX graph, or a compiled plan and what it is bound to. Raises EngineError.
    """
    runtime = _runtime(engine)
    if precision not in runtime.files:
        raise EngineError(f"{engine} has no {precision}: choose {', '.join(runtime.files)}")
    return runtime.open(Artefact(data, plan), precision, options or default_options())


def open_engine(
    bundle: Bundle, engine: str = AUTO, precision: Precision | None = None, options: EngineOptions | None = None
) -> Engine:
    """An engine that has reproduced the bundle's golden rows on this machine.

    engine: a name, or "auto" for the fastest, found by racing all that the bundle's parity vouches for and this
    machine has. precision: None for whichever is fastest. Raises EngineError saying why each one was out.
    """
    if engine != AUTO:
        _runtime(engine)
    wanted = [
        row for row in bundle.manifest.parity if engine in (AUTO, row.engine) and precision in (None, row.precision)
    ]
    reasons: list[str] = []
    proven: list[Engine] = []
    for row in wanted:
        try:
            proven.append(prove(bundle, row, options))
        except (EngineError, BundleError) as error:
            reasons.append(f"{row.engine} {row.precision}: {error}")
            logger.warning("engine left out: %s", reasons[-1])
    if not proven:
        asked = f"{engine} {precision or ''}".strip()
        why = "; ".join(reasons) or "the bundle vouches for no such engine"
        raise EngineError(f"no engine for {asked!r} can serve {bundle.path}: {why}")
    if len(proven) == 1:
        return proven[0]
    seconds = _race(proven, bundle)
    for candidate, s in zip(proven, seconds, strict=True):
        logger.info("engine race: %s %s, %.0f images/s", candidate.name, candidate.precision, RACE_BATCH / s)
    handicaps = [1.0 if candidate.precision == "fp32" else LOW_PRECISION_HANDICAP for candidate in proven]
    fastest = int(np.argmin(np.multiply(seconds, handicaps)))
    for index, candidate in enumerate(proven):
        if index != fastest:
            candidate.close()
    return proven[fastest]


def prove(bundle: Bundle, row: ParityRow, options: EngineOptions | None = None) -> Engine:
    """The engine of that row of the bundle's parity, once it has reproduced the golden rows; raises EngineError."""
    plan = bundle.manifest.plans.get(row.artefact)
    if plan is not None and plan.graph_sha256 != bundle.manifest.files[BACKBONE].sha256:
        raise EngineError(f"{row.artefact} was compiled from another backbone: export again with --engine {row.engine}")
    engine = compile_engine(bundle.artefact(row.artefact), row.engine, row.precision, options, plan=plan)
    try:
        reproduce_golden(engine, bundle)
    except EngineError:
        engine.close()
        raise
    return engine


def _runtime(engine: str) -> Runtime:
    if engine not in RUNTIMES:
        raise EngineError(f"there is no engine {engine!r}: choose {', '.join([AUTO, *RUNTIMES])}")
    return RUNTIMES[engine]


def _race(engines: Sequence[Engine], bundle: Bundle) -> list[float]:
    """Each engine's seconds for one small batch, the best of a few runs; in turns, so that a busy moment hits all."""
    pixels = np.resize(bundle.golden.pixels, (RACE_BATCH, *bundle.golden.pixels.shape[1:]))
    tokens = np.tile(bundle.clean_token, (RACE_BATCH, 1))
    best = [float("inf")] * len(engines)
    for turn in range(1 + RACE_RUNS):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            engine.run(pixels, tokens)
            if turn:  # the first is to warm up
                best[index] = min(best[index], time.perf_counter() - start)
    return best


def _onnxruntime(artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.ort import OrtEngine

    return OrtEngine(artefact, precision, options)


def _openvino(artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.ov import OpenVinoEngine

    return OpenVinoEngine(artefact, precision, options)


def _tensorrt(name: EngineName, artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.trt import TensorRtEngine

    return TensorRtEngine(artefact, precision, options, engine=name)


def _plans(engine: EngineName) -> Runtime:
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    return Runtime({p: plan_name(engine, p) for p in precisions}, functools.partial(_tensorrt, engine))


RUNTIMES: dict[EngineName, Runtime] = {
    "onnxruntime": Runtime({"fp32": BACKBONE, "int8": graph_name("int8")}, _onnxruntime),
    "openvino": Runtime({"fp32": BACKBONE, "bf16": BACKBONE, "int8": graph_name("int8")}, _openvino),
    "tensorrt": _plans("tensorrt"),
    "tensorrt-rtx": _plans("tensorrt-rtx"),
}
