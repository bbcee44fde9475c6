"""Runs a compiled plan by TensorRT or TensorRT-RTX, on the GPU for which the plan was built.

A plan is executable code, so open only plans that you trust. `tensorrt_build` compiles plans. Knows nothing about the
files of a bundle.
"""

from __future__ import annotations

import functools
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import EngineName, PlanRecord, Precision
from tureen.engines.base import Artefact, EngineOptions, import_runtime
from tureen.engines.buckets import bucket_sizes, split_batch
from tureen.engines.cuda import Cuda, Device
from tureen.errors import EngineError

if TYPE_CHECKING:
    import tensorrt_rtx as trt  # at run time `load_library` returns the module of the variant; both use the same names

logger = logging.getLogger("tureen.engines.trt")


@dataclass(frozen=True)
class TensorRtVariant:
    """The properties in which TensorRT and TensorRT-RTX differ."""

    module: str  # name of the Python module
    is_rtx: bool  # builds for given compute capabilities without a GPU, and finishes the kernels at run time
    without_gpu: tuple[str, ...] = ()  # compute capabilities of a build without a GPU


VARIANTS: dict[EngineName, TensorRtVariant] = {
    "tensorrt": TensorRtVariant("tensorrt", is_rtx=False),
    # Not Turing (7.5), which has only fp16 products: a build for it must name it.
    "tensorrt-rtx": TensorRtVariant("tensorrt_rtx", is_rtx=True, without_gpu=("8.0", "8.6", "8.9", "12.0", "12.1")),
}


def load_library(engine: EngineName) -> Any:
    """Returns the module of the engine: `tensorrt` or `tensorrt_rtx`.

    Raises EngineError if the module is absent or its import fails.
    """
    return import_runtime(
        VARIANTS[engine].module, f"{engine} is not installed: install Tureen with its extra [{engine}]"
    )


@functools.cache
def library_logger(library: Any) -> trt.ILogger:
    """Returns a logger that passes the messages of TensorRT to Python's logging.

    An EngineError does not contain these messages.

    library: the module `tensorrt` or `tensorrt_rtx`.
    """
    if TYPE_CHECKING:
        import tensorrt_rtx as trt
    else:
        trt = library
    errors = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]  # untyped where the library has no stubs
        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            logger.log(logging.INFO if severity in errors else logging.DEBUG, "%s", msg)

    return Log()


def check_plan(plan: PlanRecord | None, engine: EngineName, precision: Precision, version: str) -> PlanRecord:
    """Returns the plan record `plan` if it fits the engine, the precision and the version of the installed library.

    Raises EngineError if the record is None or does not fit.
    """
    again = f"export again on this machine with --engine {engine}"
    if plan is None:
        raise EngineError(f"{engine} runs compiled plans, and this file is not one: {again}")
    if (plan.engine, plan.precision) != (engine, precision):
        raise EngineError(f"the plan is for {plan.engine} {plan.precision}, not for {engine} {precision}: {again}")
    if plan.runtime_version != version:
        raise EngineError(f"the plan is for {engine} {plan.runtime_version}, installed is {version}: {again}")
    return plan


def check_device(plan: PlanRecord, device: Device) -> None:
    """Raises EngineError if the plan was built for another GPU than `device`, or for other compute capabilities."""
    again = f"export again on this machine with --engine {plan.engine}"
    if plan.device not in ("", device.name):
        raise EngineError(f"the plan was built on {plan.device}, and this machine has {device.name}: {again}")
    if device.compute_capability not in plan.compute_capabilities:
        built_for = ", ".join(plan.compute_capabilities)
        raise EngineError(
            f"the plan is for compute capability {built_for}, and this machine has {device.compute_capability}: {again}"
        )


class TensorRtEngine:
    """A compiled plan on the GPU.

    At most `options.streams` calls of `run` execute at the same time. Further calls wait. A batch is padded to one of a
    few batch sizes. The constructor records a CUDA graph for each size.
    """

    def __init__(
        self,
        artefact: Artefact,
        precision: Precision,
        options: EngineOptions,
        *,
        engine: EngineName = "tensorrt",
        library: Any = None,
        cuda: Cuda | None = None,
    ) -> None:
        """Opens the plan and records its CUDA graphs.

        library: the module of TensorRT; None: the installed one. cuda: None for a new `Cuda`. Raises EngineError if the
        library or the GPU is missing, if the plan was built for another version or GPU, or if the plan does not open.
        """
        if TYPE_CHECKING:
            import tensorrt_rtx as trt
        else:
            trt = library or load_library(engine)
        plan = check_plan(artefact.plan, engine, precision, trt.__version__)
        self.name: str = engine
        self.precision: Precision = precision
        self.version: str = trt.__version__
        self._sizes = bucket_sizes(min(options.max_batch, plan.batch[2]))
        self._cuda = cuda or Cuda()
        self._streams: queue.SimpleQueue[_ExecutionStream] = queue.SimpleQueue()
        try:
            check_device(plan, self._cuda.device)
            runtime = trt.Runtime(library_logger(trt))
            opened = runtime.deserialize_cuda_engine(artefact.data)
            if opened is None:
                raise EngineError(f"{engine} cannot open the plan: export again on this machine with --engine {engine}")
            for _ in range(options.streams):
                self._streams.put(
                    _ExecutionStream(trt, opened, self._cuda, self._sizes, is_rtx=VARIANTS[engine].is_rtx)
                )
        except EngineError:
            self._cuda.close()
            raise

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        stream = self._streams.get()
        try:
            logits = np.empty((len(pixels), stream.classes), dtype=np.float32)
            for part, size in split_batch(len(pixels), self._sizes):
                logits[part] = stream.run(pixels[part], tokens[part], size)
            return logits
        finally:
            self._streams.put(stream)

    def close(self) -> None:
        del self._streams  # contexts before the memory they use
        self._cuda.close()


class _ExecutionStream:
    """Runs batches one by one on a CUDA stream that no other object uses, with buffers for the largest batch.

    Each batch size has an execution context of TensorRT and, if the runtime can capture one, a CUDA graph of the run. A
    graph belongs to the context from which it was captured, so two sizes cannot share a context. All sizes share the
    scratch memory. The constructor raises EngineError if the plan does not fit the backbone or the sizes, or if the GPU
    has too little memory.
    """

    def __init__(
        self, library: Any, engine: trt.ICudaEngine, cuda: Cuda, sizes: Sequence[int], *, is_rtx: bool
    ) -> None:
        if TYPE_CHECKING:
            import tensorrt_rtx as trt
        else:
            trt = library
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        if sorted(set(names) - set(outputs)) != sorted([PIXELS_INPUT, TOKEN_INPUT]) or len(outputs) != 1:
            raise EngineError("the plan's inputs and outputs are not a backbone's: export again on this machine")
        self._engine, self._cuda, self._is_rtx = engine, cuda, is_rtx
        self._names = (PIXELS_INPUT, TOKEN_INPUT, outputs[0])
        self._stream = cuda.make_stream()
        dtypes = (np.uint8, np.float32, np.float32)
        shapes = [tuple(engine.get_tensor_shape(name))[1:] for name in self._names]
        self._host = [
            cuda.allocate_pinned((sizes[-1], *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        self._device = [cuda.allocate(array.nbytes) for array in self._host]
        self._scratch_size = max(1, engine.device_memory_size_v2)
        self._scratch = cuda.allocate(self._scratch_size)
        self._contexts: list[trt.IExecutionContext] = []
        self._start = {size: self._prepare(trt, size) for size in sizes}
        self.classes: int = shapes[-1][0]

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D).

        size: the batch size of the run, at least B; the rows after B are padding. The next run overwrites the returned
        array.
        """
        rows = len(pixels)
        self._host[0][:rows], self._host[1][:rows] = pixels, tokens  # the rest is padding and may have any content
        self._start[size]()
        self._cuda.synchronize(self._stream)
        logits: NDArray[np.float32] = self._host[2][:rows]
        return logits

    def _prepare(self, library: Any, size: int) -> Callable[[], None]:
        """Returns the function that starts a run of a batch size, after one run as a warm-up.

        The function launches a CUDA graph. If the runtime cannot capture a graph, the function submits the work itself.
        """
        context = self._context(library, size)
        self._contexts.append(context)
        enqueue = functools.partial(self._enqueue, context, size)
        enqueue()
        self._cuda.synchronize(self._stream)
        # TensorRT-RTX cannot be captured on every machine, and reports whether it can.
        if self._is_rtx and not context.is_stream_capturable(self._stream):
            return enqueue
        return functools.partial(self._cuda.launch, self._cuda.capture(self._stream, enqueue), self._stream)

    def _context(self, library: Any, size: int) -> trt.IExecutionContext:
        if TYPE_CHECKING:
            import tensorrt_rtx as trt
        else:
            trt = library
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Compiles for this size now: a captured graph would keep the generic kernels.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError("the GPU has no room for the engine: use a smaller max_batch or fewer streams")
        context.set_device_memory(self._scratch, self._scratch_size)
        is_bound = [
            context.set_input_shape(name, (size, *array.shape[1:]))
            for name, array in zip(self._names[:2], self._host[:2], strict=True)
        ]
        is_bound += [
            context.set_tensor_address(n, address) for n, address in zip(self._names, self._device, strict=True)
        ]
        if not all(is_bound):
            raise EngineError(f"the plan has no batch of {size}: export again on this machine")
        return context

    def _enqueue(self, context: trt.IExecutionContext, size: int) -> None:
        pixels, tokens, logits = (array[:size] for array in self._host)
        self._cuda.upload(self._device[0], pixels, self._stream)
        self._cuda.upload(self._device[1], tokens, self._stream)
        if not context.execute_async_v3(self._stream):
            raise EngineError(f"the engine could not start a batch of {size}: look at nvidia-smi, and start again")
        self._cuda.download(logits, self._device[2], self._stream)
