"""Wraps the functions of the CUDA runtime that an engine needs: streams, memory, copies, captured graphs.

Uses the first GPU that this process sees; CUDA_VISIBLE_DEVICES chooses it. Knows nothing about models.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tureen.errors import EngineError

if TYPE_CHECKING:
    from cuda.bindings import runtime as cuda
else:
    try:
        from cuda.bindings import runtime as cuda
    except Exception:  # noqa: BLE001 - reported by `Cuda`
        cuda = None

NO_GPU = "this machine has no NVIDIA GPU, or no driver for it"
NO_BINDINGS = "cuda-bindings is not installed: install Tureen with its extra [tensorrt], [tensorrt-rtx] or [gpu]"


@dataclass(frozen=True)
class Device:
    name: str
    compute_capability: str  # such as "9.0"


class Cuda:
    """The GPU, and the streams, memory and CUDA graphs that this object creates. `close` frees all of these.

    A stream or graph is a handle, and device memory is an address. The caller must not use any of these after `close`.
    Every method except `close` raises EngineError if the GPU fails.
    """

    def __init__(self) -> None:
        """Raises EngineError if the package cuda-bindings, the driver or the GPU is missing."""
        if cuda is None:
            raise EngineError(NO_BINDINGS)
        self._free: list[Callable[[], Any]] = []
        error, count = cuda.cudaGetDeviceCount()
        if error != cuda.cudaError_t.cudaSuccess or not count:
            raise EngineError(NO_GPU)
        properties = check_status("describe itself", cuda.cudaGetDeviceProperties(0))
        self.device = Device(properties.name.decode(), f"{properties.major}.{properties.minor}")

    def make_stream(self) -> int:
        """Returns the handle of a new non-blocking stream, a queue of work for the GPU."""
        stream = int(check_status("make a stream", cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))
        self._free.append(lambda: cuda.cudaStreamDestroy(stream))
        return stream

    def allocate(self, size: int) -> int:
        """Returns the address of `size` new bytes in the memory of the GPU, aligned to 256 bytes."""
        address = int(check_status(f"allocate {size:,} bytes", cuda.cudaMalloc(size)))
        self._free.append(lambda: cuda.cudaFree(address))
        return address

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Returns an array of zeros in pinned host memory, which the GPU reads and writes directly."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(check_status(f"pin {size:,} bytes", cuda.cudaHostAlloc(size, cuda.cudaHostAllocDefault)))
        self._free.append(lambda: cuda.cudaFreeHost(address))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Starts a copy of a pinned, contiguous array to the address in the GPU's memory. Does not wait for it."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        check_status("copy to it", cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Starts a copy from the address in the GPU's memory to a pinned, contiguous array. Does not wait for it."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check_status("copy from it", cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    def synchronize(self, stream: int) -> None:
        """Waits until all work on the stream is done."""
        check_status("finish its work", cuda.cudaStreamSynchronize(stream))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Records the work that `enqueue` submits to the stream as a CUDA graph. Returns the handle of the graph.

        The GPU does not run the work during the recording. `launch` runs the graph.
        """
        # Captures this thread only, so that other threads may use other streams at the same time.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check_status("begin a capture", cuda.cudaStreamBeginCapture(stream, mode))
        try:
            enqueue()
        except BaseException:
            cuda.cudaStreamEndCapture(stream)
            raise
        captured = check_status("capture a graph", cuda.cudaStreamEndCapture(stream))
        try:
            graph = int(check_status("instantiate a graph", cuda.cudaGraphInstantiate(captured, 0)))
        finally:
            cuda.cudaGraphDestroy(captured)
        self._free.append(lambda: cuda.cudaGraphExecDestroy(graph))
        return graph

    def launch(self, graph: int, stream: int) -> None:
        """Starts a run of a graph that `capture` returned. Does not wait for the end of the run."""
        check_status("launch a graph", cuda.cudaGraphLaunch(graph, stream))

    def close(self) -> None:
        """Frees all streams, memory and graphs of this object, newest first. Ignores errors of the GPU."""
        while self._free:
            self._free.pop()()


def check_status(what: str, result: tuple[Any, ...]) -> Any:
    """Returns the value of a call of the CUDA runtime; None for a call without a value.

    result: the status and the value, as the call returns them. Raises EngineError if the status is an error. what:
    completes the message "the GPU could not …".
    """
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        is_full = error == cuda.cudaError_t.cudaErrorMemoryAllocation
        advice = "use a smaller max_batch or fewer streams" if is_full else "look at nvidia-smi, and start again"
        raise EngineError(f"the GPU could not {what} ({error.name}): {advice}")
    return values[0] if values else None
