"""Opens the engine that runs the backbone of a bundle: a named engine, or the fastest one on this machine.

The golden rows of a bundle are generated images with PyTorch's logits for them. `open_engine` and
`open_verified_engine` return only engines that have reproduced these logits.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import (
    BACKBONE,
    EngineName,
    FileName,
    ParityRow,
    PlanRecord,
    Precision,
    graph_name,
    is_plan,
    plan_name,
)
from tureen.engines.base import Artefact, Engine, EngineOptions, check_golden_rows
from tureen.engines.timings_cache import Timing, make_ranking, read_ranking, write_ranking
from tureen.errors import BundleError, EngineError, did_you_mean
from tureen.machine import available_cpus, ensure_writable

AUTO = "auto"
RACE_BATCH = 8
RACE_RUNS = 15

logger = logging.getLogger("tureen.engines")


@dataclass(frozen=True)
class Runtime:
    """A kind of engine that Tureen can open.

    files: the file of the bundle that the engine runs in each precision. open: the constructor of the engine.
    """

    files: dict[Precision, FileName]
    open: Callable[[Artefact, Precision, EngineOptions], Engine]


def default_options() -> EngineOptions:
    """Returns engine options with all CPUs of this process, one run at a time, and no cache directory."""
    return EngineOptions(threads=available_cpus())


def compile_engine(
    data: bytes,
    engine: str,
    precision: Precision = "fp32",
    options: EngineOptions | None = None,
    *,
    plan: PlanRecord | None = None,
) -> Engine:
    """Returns a new engine for the backbone in `data`. Does not check whether the engine reproduces golden rows.

    engine: a name such as "openvino". data: an ONNX graph, or a compiled plan. plan: the record of the plan; None for a
    graph. Raises EngineError if there is no such engine or precision, or if the engine cannot be opened. Raises
    BundleError if the graph cannot be parsed.
    """
    runtime = _runtime(engine)
    if precision not in runtime.files:
        raise EngineError(f"{engine} has no {precision}: choose {', '.join(runtime.files)}")
    if plan is not None and not is_plan(runtime.files[precision]):  # a graph that passes as a plan would not be checked
        raise EngineError(f"{engine} runs no compiled plan: export the model again")
    try:
        return runtime.open(Artefact(data, plan), precision, options or default_options())
    except (EngineError, BundleError):
        raise
    except Exception as error:  # the runtimes' exceptions have no common base
        raise EngineError(f"{engine} cannot be opened: {type(error).__name__}: {error}") from error


def open_engine(
    bundle: Bundle, engine: str = AUTO, precision: Precision | None = None, options: EngineOptions | None = None
) -> Engine:
    """Returns a new engine that has reproduced the bundle's golden rows on this machine.

    engine: a name, or "auto" for the fastest engine that the bundle lists and this machine can run. precision: None for
    the fastest one. options: None for `default_options`.

    If several engines fit, this function opens the fastest one of the ranking in `options.cache`. If there is no
    ranking, it opens all of them, times them, and saves the ranking. It does so too if the ranking lacks an engine that
    opens.

    Raises EngineError, with the reason for each engine, if no engine can be opened.
    """
    if engine != AUTO:
        _runtime(engine)
    options = options or default_options()
    candidates = [
        row for row in bundle.manifest.parity if engine in (AUTO, row.engine) and precision in (None, row.precision)
    ]
    ranking = read_ranking(bundle, options) if len(candidates) > 1 else None
    places = {(timing.engine, timing.precision): i for i, timing in enumerate(ranking.timings)} if ranking else {}
    measured = sorted((row for row in candidates if _key(row) in places), key=lambda row: places[_key(row)])
    options = _with_usable_cache(options)
    reasons: list[str] = []

    def attempt(row: ParityRow) -> Engine | None:
        try:
            return open_verified_engine(bundle, row, options)
        except (EngineError, BundleError) as error:
            reasons.append(f"{row.engine} {row.precision}: {error}")
            logger.info("engine left out: %s", reasons[-1])  # if all fail, the error has all reasons
            return None

    # An engine without a timing failed when the ranking was made. If it opens now, all engines are timed again.
    verified = [opened for row in candidates if row not in measured and (opened := attempt(row))]
    if ranking and not verified:
        for row in measured:
            if opened := attempt(row):
                logger.info("engine chosen: %s %s, measured %s by %s", *_key(row), ranking.measured_on, ranking.by)
                return opened
    else:
        verified += [opened for row in measured if (opened := attempt(row))]
    if not verified:
        name = f"{engine} {precision or ''}".strip()
        why = "; ".join(reasons) or "the bundle lists no such engine"
        raise EngineError(f"no engine for {name!r} can serve {bundle.path}: {why}")
    return verified[0] if len(verified) == 1 else _fastest(verified, bundle, options)


def open_verified_engine(bundle: Bundle, row: ParityRow, options: EngineOptions | None = None) -> Engine:
    """Returns a new engine, after the check that it reproduces the bundle's golden rows.

    row: the entry of the manifest with the engine, its precision and its file. Raises BundleError if the file is
    missing or damaged. Raises EngineError if the engine cannot be opened or does not reproduce the golden rows.
    """
    plan = bundle.manifest.plans.get(row.artefact)
    if plan is not None and plan.graph_sha256 != bundle.manifest.files[BACKBONE].sha256:
        raise EngineError(f"{row.artefact} was compiled from another backbone: export again with --engine {row.engine}")
    engine = compile_engine(bundle.artefact(row.artefact), row.engine, row.precision, options, plan=plan)
    try:
        check_golden_rows(engine, bundle)
    except EngineError:
        engine.close()
        raise
    return engine


def _key(row: ParityRow) -> tuple[str, Precision]:
    return row.engine, row.precision


def _with_usable_cache(options: EngineOptions) -> EngineOptions:
    """Returns the options; without the cache if it is not writable, because some runtimes would fail with it."""
    if options.cache is None:
        return options
    try:
        ensure_writable(options.cache)
    except OSError as error:
        logger.warning(
            "the cache is not writable, so nothing is kept for the next start: %s: %s", options.cache, error.strerror
        )
        return replace(options, cache=None)
    return options


def _runtime(engine: str) -> Runtime:
    if engine not in RUNTIMES:
        names = [AUTO, *RUNTIMES]
        raise EngineError(f"there is no engine {engine!r}: choose {', '.join(names)}{did_you_mean(engine, names)}")
    return RUNTIMES[engine]


def _fastest(engines: Sequence[Engine], bundle: Bundle, options: EngineOptions) -> Engine:
    """Times the engines, writes their ranking to the cache, and closes all but the fastest. Returns the fastest."""
    timings = [
        Timing(engine=engine.name, precision=engine.precision, images_per_second=RACE_BATCH / seconds)
        for engine, seconds in zip(engines, _race(engines, bundle), strict=True)
    ]
    for timing in timings:
        logger.info("engine race: %s %s, %.0f images/s", timing.engine, timing.precision, timing.images_per_second)
    ranking = make_ranking(bundle, options, timings, batch=RACE_BATCH, by="race")
    write_ranking(ranking, options.cache)
    first = ranking.timings[0]
    fastest = next(e for e in engines if (e.name, e.precision) == (first.engine, first.precision))
    for engine in engines:
        if engine is not fastest:
            engine.close()
    return fastest


def _race(engines: Sequence[Engine], bundle: Bundle) -> list[float]:
    """Returns the seconds that each engine takes for a batch of RACE_BATCH images, in the order of the engines.

    The engines take turns. Each runs RACE_RUNS times, and its shortest time counts.
    """
    pixels = np.resize(bundle.golden.pixels, (RACE_BATCH, *bundle.golden.pixels.shape[1:]))
    tokens = np.tile(bundle.clean_token, (RACE_BATCH, 1))
    best = [float("inf")] * len(engines)
    for turn in range(1 + RACE_RUNS):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            engine.run(pixels, tokens)
            if turn:  # the first run is the warm-up
                best[index] = min(best[index], time.perf_counter() - start)
    return best


def _onnxruntime(artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.onnxruntime_cpu import OrtEngine

    return OrtEngine(artefact, precision, options)


def _openvino(artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.openvino_cpu import OpenVinoEngine

    return OpenVinoEngine(artefact, precision, options)


def _onnxruntime_gpu(name: EngineName, artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.onnxruntime_gpu import OrtGpuEngine

    return OrtGpuEngine(name, artefact, precision, options)


def _tensorrt(name: EngineName, artefact: Artefact, precision: Precision, options: EngineOptions) -> Engine:
    from tureen.engines.tensorrt_run import TensorRtEngine

    return TensorRtEngine(artefact, precision, options, engine=name)


def _plans(engine: EngineName) -> Runtime:
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    return Runtime({p: plan_name(engine, p) for p in precisions}, functools.partial(_tensorrt, engine))


RUNTIMES: dict[EngineName, Runtime] = {
    "onnxruntime": Runtime({"fp32": BACKBONE, "int8": graph_name("int8")}, _onnxruntime),
    "openvino": Runtime({"fp32": BACKBONE, "bf16": BACKBONE, "int8": graph_name("int8")}, _openvino),
    "onnxruntime-cuda": Runtime(
        {"fp32": BACKBONE, "fp16": graph_name("fp16")}, functools.partial(_onnxruntime_gpu, "onnxruntime-cuda")
    ),
    "onnxruntime-tensorrt": Runtime(
        {"fp32": BACKBONE, "fp16": graph_name("fp16"), "bf16": graph_name("bf16")},
        functools.partial(_onnxruntime_gpu, "onnxruntime-tensorrt"),
    ),
    "tensorrt": _plans("tensorrt"),
    "tensorrt-rtx": _plans("tensorrt-rtx"),
}
