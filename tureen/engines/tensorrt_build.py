"""Compiles a backbone's ONNX graph into a plan: a file that TensorRT or TensorRT-RTX runs on one kind of GPU.

Works with TensorRT-RTX and with TensorRT 10.12 to 11. The graph defines the types of the tensors ("strongly typed").
One optimisation profile defines the batch sizes. Knows nothing about the files of a bundle or about running a plan.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tureen.atomic_file import write_atomically
from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import EngineName, PlanRecord, Precision
from tureen.engines.cuda import NO_GPU, Cuda, Device
from tureen.engines.tensorrt_run import VARIANTS, library_logger, load_library
from tureen.errors import EngineError

if TYPE_CHECKING:
    import tensorrt_rtx as trt  # at run time `load_library` returns the module of the variant; both use the same names

logger = logging.getLogger("tureen.engines.trt_build")

Progress = Callable[[int, int], None]  # (steps done, all steps)

DEFAULT_BATCH = (1, 32, 128)


def detect_gpu() -> Device | None:
    """Returns the first GPU that this process sees; None if the GPU, the driver or cuda-bindings is missing."""
    try:
        return Cuda().device
    except EngineError:
        return None


def plan_record(
    engine: EngineName,
    precision: Precision,
    *,
    backbone_sha256: str,
    batch: tuple[int, int, int],
    compute_capabilities: Sequence[str] = (),
) -> PlanRecord:
    """Returns the record of the plan that `build_plan` would build with the same parameters. Builds nothing.

    Raises EngineError if the library is missing. Raises it for TensorRT without a GPU too: only TensorRT-RTX can build
    without one.
    """
    version, device = load_library(engine).__version__, detect_gpu()
    if device is None and not VARIANTS[engine].is_rtx:
        raise EngineError(f"{NO_GPU}: {engine} builds a plan only on the GPU that will run it")
    own = [device.compute_capability] if device else list(VARIANTS[engine].without_gpu)
    return PlanRecord(
        engine=engine,
        precision=precision,
        graph_sha256=backbone_sha256,
        runtime_version=version,
        device=device.name if device else "",
        compute_capabilities=list(compute_capabilities) if VARIANTS[engine].is_rtx and compute_capabilities else own,
        batch=batch,
    )


def build_plan(
    graph: bytes,
    *,
    engine: EngineName,
    precision: Precision,
    backbone_sha256: str,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    compute_capabilities: Sequence[str] = (),
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> tuple[bytes, PlanRecord]:
    """Compiles an ONNX graph into a plan. Returns the plan and its record.

    graph: has the weights of the bundle's backbone.onnx, and tensor types of `precision`. backbone_sha256: of
    backbone.onnx. batch: smallest, best and largest batch. cache: directory for the timings of kernels.
    compute_capabilities: of the GPUs that will run the plan, such as "8.6"; only TensorRT-RTX uses them. If empty, the
    plan is for the GPU of this machine. Without a GPU, it is for each compute capability that runs every precision.
    on_progress: called after each step.

    Raises EngineError if the library is missing, if a GPU is missing that the build needs, or if the graph cannot be
    compiled.
    """
    record = plan_record(
        engine,
        precision,
        backbone_sha256=backbone_sha256,
        batch=batch,
        compute_capabilities=compute_capabilities,
    )
    timings = None
    if cache is not None and not VARIANTS[engine].is_rtx:  # RTX measures no kernels
        gpu_name = re.sub(r"[^A-Za-z0-9]+", "-", record.device)
        timings = cache / engine / f"{record.runtime_version}-{gpu_name}.timings"
    return _compile(graph, record, engine, timings, on_progress), record


def _compile(
    graph: bytes, record: PlanRecord, engine: EngineName, timings: Path | None, on_progress: Progress | None
) -> bytes:
    if TYPE_CHECKING:
        import tensorrt_rtx as trt
    else:
        trt = load_library(engine)
    log = library_logger(trt)
    builder = trt.Builder(log)
    # TensorRT 11 has no other kind of network, and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        _raise_parse_error(parser, engine)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    types = {tensor.name: tensor.dtype for tensor in (*inputs, *outputs)}
    if types != {PIXELS_INPUT: trt.uint8, TOKEN_INPUT: trt.float32, LOGITS_OUTPUT: trt.float32}:
        raise EngineError(f"{engine} cannot use this graph, it is not a backbone: export the model again")

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        least, best, largest = (trt.Dims((rows, *tuple(tensor.shape)[1:])) for rows in record.batch)
        profile.set_shape(tensor.name, least, best, largest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{engine} cannot use batches {record.batch}: give the smallest, best and largest, ascending")
    if record.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # it rounds float32 to 10 bits
    if VARIANTS[engine].is_rtx:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # without it no CUDA graph can be captured
        config.num_compute_capabilities = len(record.compute_capabilities)
        for index, capability in enumerate(record.compute_capabilities):
            target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if target is None or not config.set_compute_capability(target, index):
                raise EngineError(f"{engine} cannot build for compute capability {capability}: use tensorrt there")
    if timings is not None:
        load_timing_cache(config, timings)
    if on_progress is not None:
        config.progress_monitor = _progress_monitor(engine, on_progress)
    built = builder.build_serialized_network(network, config)
    if built is None:
        targets = ", ".join(record.compute_capabilities)
        raise EngineError(
            f"{engine} cannot compile this graph in {record.precision} for compute capability {targets}: "
            "try another precision or GPU"
        )
    if timings is not None:
        save_timing_cache(config, timings)
    return bytes(built)


def _raise_parse_error(parser: trt.OnnxParser, engine: EngineName) -> None:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    operators = sorted({error.node_operator() for error in errors} - {""})
    if not operators:
        raise EngineError(f"{engine} cannot read this graph, it is damaged: export the model again")
    raise EngineError(f"{engine} has no {', '.join(operators)} as this graph uses it: use another engine")


def load_timing_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Adds the kernel timings of earlier builds from `file` to `config`, so that the build does not measure them again.

    A missing or damaged file gives no timings.
    """
    known = file.read_bytes() if file.exists() else b""
    # A damaged file is replaced by an empty cache. The file name contains the GPU: timings of another GPU are refused.
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)


def save_timing_cache(config: trt.IBuilderConfig, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        timings = bytes(config.get_timing_cache().serialize())
        write_atomically(file, timings, mode=0o600, has_other_writers=True)
    except OSError:
        logger.warning("the timings could not be saved in %s: the next build measures the kernels again", file)


def _progress_monitor(engine: EngineName, on_progress: Progress) -> trt.IProgressMonitor:
    if TYPE_CHECKING:
        import tensorrt_rtx as trt
    else:
        trt = load_library(engine)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Calls `on_progress` after each step of the outermost phase of the build. Ignores the phases inside it."""

        outermost, steps = "", 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
            if not parent_phase:
                self.outermost, self.steps = phase_name, int(num_steps)

        def step_complete(self, phase_name: str, step: Any) -> bool:
            if phase_name == self.outermost:
                on_progress(int(step) + 1, self.steps)
            return True  # continue

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
