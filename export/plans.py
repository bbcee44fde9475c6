"""Compiled plans on their way into a bundle: built, opened on this machine's GPU, and measured against PyTorch.

A plan that cannot be run here is built all the same, so that what is wrong with it shows, and then left out.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError, ParityError
from export.parity import ParityLimits, Reference, check_parity, measure_parity
from tureen.bundle import ENGINES_DIRECTORY, EngineName, FileName, ParityRow, PlanRecord, Precision
from tureen.engines import compile_engine
from tureen.engines.base import Engine
from tureen.engines.trt_build import DEFAULT_BATCH, build_plan
from tureen.errors import EngineError

Build = Callable[[], tuple[bytes, PlanRecord]]
Open = Callable[[bytes, PlanRecord], Engine]


@dataclass(frozen=True)
class ProvenPlan:
    """A plan for a bundle: its bytes, what it is bound to, and how far it is from PyTorch."""

    data: bytes
    record: PlanRecord
    parity: ParityRow


def compile_plans(
    graphs: Mapping[Precision, bytes],
    engines: Sequence[EngineName],
    expected: Reference,
    limits: ParityLimits,
    *,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    cache: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[dict[FileName, ProvenPlan], list[str]]:
    """The plans that hold, by the file each becomes, and for each of the others why it was left out.

    graphs: the backbone's ONNX graph in each precision to compile; "fp32" is the bundle's backbone.onnx and always
    there. engines: "tensorrt", "tensorrt-rtx". batch: least, best and largest. cache: directory for kernels' timings.
    report: told each step. Raises ParityError where an fp32 plan answers wrongly.
    """
    digest = hashlib.sha256(graphs["fp32"]).hexdigest()
    plans: dict[FileName, ProvenPlan] = {}
    reasons: list[str] = []
    for engine in engines:
        for precision, graph in graphs.items():
            report(f"compiling a plan for {engine} {precision}")
            build = functools.partial(
                build_plan,
                graph,
                engine=engine,
                precision=precision,
                backbone_sha256=digest,
                batch=batch,
                cache=cache,
            )
            try:
                plan = prove_plan(build, expected, limits)
            except ParityError as error:
                if precision == "fp32":
                    raise
                reasons.append(str(error))
            except EngineError as error:
                reasons.append(f"{engine} {precision}: {error}")
            except ExportError as error:
                reasons.append(str(error))
            else:
                plans[plan.parity.artefact] = plan
                report(f"proven: {engine} {precision}, largest logit difference {plan.parity.max_abs_diff:.1e}")
                continue
            report(f"left out: {reasons[-1]}")
    return plans, reasons


def prove_plan(build: Build, expected: Reference, limits: ParityLimits, *, open_plan: Open | None = None) -> ProvenPlan:
    """Build a plan, by TensorRT's ONNX parser or by torch-tensorrt, and prove it on this machine.

    Raises EngineError where it cannot be built, ExportError where it cannot be run here, ParityError where it is wrong.
    """
    start = time.perf_counter()
    data, record = build()
    built = f"built in {time.perf_counter() - start:.1f} s, {len(data):,} bytes"
    try:
        engine = (open_plan or _open)(data, record)
    except EngineError as error:
        raise ExportError(f"{record.engine} {record.precision}: {built}, not run here: {error}") from error
    try:
        row = measure_parity(engine, expected)
        check_parity(row, limits)
    finally:
        engine.close()
    name = f"{ENGINES_DIRECTORY}/{record.engine}-{record.precision}.plan"
    return ProvenPlan(data, record, row.model_copy(update={"artefact": name}))


def _open(data: bytes, record: PlanRecord) -> Engine:
    return compile_engine(data, record.engine, record.precision, plan=record)
