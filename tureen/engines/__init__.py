"""Opens the engine that runs a bundle's backbone: the one asked for, or the fastest that this machine has.

Every engine opened here has reproduced the bundle's golden rows.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from tureen.bundle import Bundle, ParityRow, Precision
from tureen.engines.base import Engine, reproduce_golden
from tureen.errors import EngineError

AUTO = "auto"
RACE_BATCH = 8
RACE_RUNS = 15
LOW_PRECISION_HANDICAP = 1.1  # a lower precision has to be this much faster to be worth its error

logger = logging.getLogger("tureen.engines")


def compile_engine(graph: bytes, engine: str, precision: Precision = "fp32", *, threads: int | None = None) -> Engine:
    """The backbone `graph` (ONNX) compiled by the engine of that name, not yet proven against any bundle.

    threads: how many it may use; all this process may run on where None. Raises EngineError.
    """
    threads = available_cpus() if threads is None else threads
    if engine not in ENGINES:
        raise EngineError(f"there is no engine {engine!r}: choose {', '.join([AUTO, *ENGINES])}")
    return ENGINES[engine](graph, precision, threads)


def open_engine(
    bundle: Bundle, engine: str = AUTO, precision: Precision | None = None, *, threads: int | None = None
) -> Engine:
    """An engine that has reproduced the bundle's golden rows on this machine.

    engine: a name, or "auto" for the fastest, found by racing all that the bundle's parity vouches for and this
    machine has. precision: None for whichever is fastest. Raises EngineError saying why each one was out.
    """
    if engine != AUTO and engine not in ENGINES:
        raise EngineError(f"there is no engine {engine!r}: choose {', '.join([AUTO, *ENGINES])}")
    wanted = [
        row for row in bundle.manifest.parity if engine in (AUTO, row.engine) and precision in (None, row.precision)
    ]
    reasons: list[str] = []
    proven: list[Engine] = []
    for row in wanted:
        try:
            proven.append(_prove(bundle, row, threads))
        except EngineError as error:
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


def available_cpus() -> int:
    """The number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prove(bundle: Bundle, row: ParityRow, threads: int | None) -> Engine:
    engine = compile_engine(bundle.graph, row.engine, row.precision, threads=threads)
    try:
        reproduce_golden(engine, bundle)
    except EngineError:
        engine.close()
        raise
    return engine


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


def _onnxruntime(graph: bytes, precision: Precision, threads: int) -> Engine:
    from tureen.engines.ort import OrtEngine

    return OrtEngine(graph, precision=precision, threads=threads)


def _openvino(graph: bytes, precision: Precision, threads: int) -> Engine:
    from tureen.engines.ov import OpenVinoEngine

    return OpenVinoEngine(graph, precision=precision, threads=threads)


ENGINES: dict[str, Callable[[bytes, Precision, int], Engine]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
