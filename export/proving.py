"""Decides which engines may run a backbone: compiles the backbone for each, and compares the logits with PyTorch.

The whole export fails if the comparison fails for a requested precision, or for fp32 on the CPU. In the second case the
graph is wrong. If the comparison fails for any other precision, only that engine in that precision is left out, because
a lower precision may lose accuracy, and a GPU may round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from export.artefacts import BundleArtefacts, PlanBuilder
from export.errors import ExportError, ParityError
from export.graph import onnx_graph
from export.parity import ParityLimits, check_parity, measure_parity
from export.reference import Reference
from training.models.vit import DualTokenViT
from tureen.bundle.manifest import BACKBONE, ENGINES_DIRECTORY, EngineName, FileName, ParityRow, PlanRecord, Precision
from tureen.engines import RUNTIMES, compile_engine
from tureen.engines.base import Artefact, Engine
from tureen.engines.detection import REQUIREMENTS, missing_requirement
from tureen.errors import EngineError
from tureen.machine import cpu_flags, nvidia_gpus
from tureen.preprocess import Pixels
from tureen.timing import median_seconds

LATER_OPSET = 23  # has a single Attention operator
LATER_GRAPH = f"{ENGINES_DIRECTORY}/backbone-opset{LATER_OPSET}.onnx"
LATER_GAIN = 1.05  # minimum speed-up that justifies the size of a second graph
RACE_BATCH = 8
RACE_RUNS = 9

ReportMessage = Callable[[str], None]
OpenArtefact = Callable[[EngineName, Precision, Artefact], Engine]


def open_artefact(engine: EngineName, precision: Precision, artefact: Artefact) -> Engine:
    """Returns an engine that runs the artefact with default options, on all CPUs.

    Raises EngineError if the engine cannot be opened.
    """
    return compile_engine(artefact.data, engine, precision, plan=artefact.plan)


@dataclass(frozen=True)
class EngineRequest:
    """The engines and precisions that an export compares with PyTorch.

    An empty sequence of engines or precisions means all that this machine supports.
    """

    engines: Sequence[str] = ()  # names, such as "openvino"
    precisions: Sequence[str] = ()  # names, such as "fp32"
    calibration: Callable[[], Pixels] | None = None  # returns images for int8; None: no images, so no int8
    has_later_opset: bool = False  # whether to try the graph in ONNX opset 23 too; kept if it is faster
    builder: PlanBuilder = "onnx"  # compiler of TensorRT plans


@dataclass
class ProvenEngines:
    """The engines whose logits were near enough to those of PyTorch, as `prove_engines` found.

    rows: a row of the manifest for each engine and precision. files: content of the files in engines/ that the engines
    run, by file name. plans: for each file that is a plan, compiled for one kind of GPU, its record by file name.
    """

    rows: list[ParityRow] = field(default_factory=list)
    files: dict[FileName, bytes] = field(default_factory=dict)
    plans: dict[FileName, PlanRecord] = field(default_factory=dict)


def prove_engines(
    artefacts: BundleArtefacts,
    expected: Reference,
    request: EngineRequest,
    limits: ParityLimits,
    *,
    open_artefact: OpenArtefact = open_artefact,
    report: ReportMessage = lambda line: None,
) -> ProvenEngines:
    """Compares the requested engines with PyTorch, and returns those that pass.

    expected: the images with their PyTorch logits. open_artefact: opens an engine on a file. report: called with a
    message for each engine and precision.
    Raises ExportError if no engine passes, or if a requested engine or precision is not among those that pass. Raises
    ParityError if the comparison fails for a requested precision, or for fp32 on the CPU.
    """
    proven, reasons = ProvenEngines(), []
    chosen = candidate_engines(request.engines, request.precisions, has_calibration=request.calibration is not None)
    for engine, precision, name in chosen:
        built = ""
        try:
            artefact = artefacts.get(engine, precision, name)
            built = "built, but it does not run on this machine: " if artefact.plan else ""
            compiled = open_artefact(engine, precision, artefact)
        except (EngineError, ExportError) as error:
            reasons.append(f"{engine} {precision}: {built}{error}")
            report(f"left out: {reasons[-1]}")
            continue
        try:
            row = measure_parity(compiled, expected, name)
            check_parity(row, limits)
        except ParityError as error:
            is_portable = precision == "fp32" and not REQUIREMENTS[engine].needs_gpu
            if is_portable or precision in request.precisions:
                raise
            reasons.append(str(error))
            report(f"left out: {error}")
            continue
        finally:
            compiled.close()
        report(_summary(row))
        proven.rows.append(row)
        if name != BACKBONE:
            proven.files[name] = artefact.data
        if artefact.plan:
            proven.plans[name] = artefact.plan
    missing = [engine for engine in request.engines if engine not in {row.engine for row in proven.rows}]
    missing += [
        precision for precision in request.precisions if precision not in {row.precision for row in proven.rows}
    ]
    if missing or not proven.rows:
        why = "; ".join(reasons) or "no engine supports it"
        raise ExportError(f"{', '.join(missing) or 'every engine'} could not be proven: {why}")
    return proven


def add_later_opset(
    proven: ProvenEngines,
    fp32: bytes,
    model: DualTokenViT,
    expected: Reference,
    limits: ParityLimits,
    report: ReportMessage,
) -> None:
    """Builds a graph in opset 23. Adds the graph to `proven` for each engine that runs it at least 5 % faster.

    Compares the speed with that of backbone.onnx, and the logits with those of PyTorch, under the same limits. An
    engine that is not faster, or exceeds the limits, keeps backbone.onnx.
    """
    later = onnx_graph(model, opset=LATER_OPSET)
    for index, row in enumerate(proven.rows):
        if row.artefact != BACKBONE:
            continue
        try:
            engines = [compile_engine(graph, row.engine, row.precision) for graph in (fp32, later)]
        except EngineError as error:
            report(f"opset {LATER_OPSET} on {row.engine} {row.precision}: left out, {error}")
            continue
        try:
            gain = _speedup(engines, expected)
            if gain >= LATER_GAIN:
                found = measure_parity(engines[1], expected, LATER_GRAPH)
                check_parity(found, limits)
                proven.rows[index] = found
                proven.files[LATER_GRAPH] = later
        except ParityError as error:
            report(f"opset {LATER_OPSET}: left out, {error}")
            continue
        finally:
            for engine in engines:
                engine.close()
        verdict = "kept" if gain >= LATER_GAIN else f"left out, a second graph requires {LATER_GAIN:g}"
        report(f"opset {LATER_OPSET} on {row.engine} {row.precision}: {gain:.2f} times as fast, {verdict}")


def candidate_engines(
    engines: Sequence[str] = (), precisions: Sequence[str] = (), *, has_calibration: bool
) -> list[tuple[EngineName, Precision, FileName]]:
    """Returns each combination of engine, precision and file name that an export compares with PyTorch.

    engines, precisions: those that were requested; empty: all. If `engines` is empty, leaves out the engines that this
    machine does not support. has_calibration: whether there are images for int8. Without such images, leaves out int8
    unless it was requested.
    """
    gpus, flags = nvidia_gpus(), cpu_flags()
    return [
        (engine, precision, name)
        for engine, runtime in RUNTIMES.items()
        for precision, name in runtime.files.items()
        if (engine in engines or not engines)
        and (precision in precisions or not precisions)
        and (engines or not missing_requirement(engine, precision, gpus=gpus, flags=flags))
        and (precision != "int8" or has_calibration or "int8" in precisions)
    ]


def _speedup(engines: Sequence[Engine], expected: Reference) -> float:
    """Returns how many times as fast the second engine is as the first, from medians of alternating runs."""
    pixels = np.resize(expected.images.pixels[0], (RACE_BATCH, *expected.images.pixels.shape[2:]))
    tokens = np.tile(expected.clean_token, (RACE_BATCH, 1))
    first, second = median_seconds([partial(engine.run, pixels, tokens) for engine in engines], rounds=RACE_RUNS)
    return first / second


def _summary(row: ParityRow) -> str:
    """Returns the message for an engine that passed, with the measured differences from PyTorch."""
    parts = [
        f"proven: {row.engine} {row.precision}, largest logit difference {row.max_abs_diff:.1e}",
        f"same label {100 * row.top1_agreement:.2f} % at the worst β",
    ]
    if row.accuracy:
        apart = max(
            max(abs(at.clean - at.clean_fp32), abs(at.transferred - at.transferred_fp32)) for at in row.accuracy
        )
        parts.append(f"accuracy within {100 * apart:.2f} points of fp32, clean and attacked")
    return ", ".join(parts)
