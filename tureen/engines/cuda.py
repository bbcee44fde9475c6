"""The little of the CUDA runtime that an engine needs: streams, memory, copies, captured graphs.

Knows nothing about models. Everything is of the first GPU that this process sees (CUDA_VISIBLE_DEVICES chooses).
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
    except Exception:  # noqa: BLE001 - reported when a GPU is asked for
        cuda = None

NO_GPU = "this machine has no NVIDIA GPU, or no driver for it"
NO_BINDINGS = "cuda-bindings is not installed: install Tureen with its extra [tensorrt], [tensorrt-rtx] or [gpu]"


@dataclass(frozen=True)
class Device:
    name: str
    compute_capability: str  # such as "9.0"


class Cuda:
    """The GPU, and what was allocated on it through this object, which `close` frees.

    Streams and graphs are handles, device memory is addresses. A graph, stream or array is not used after `close`.
    """

    def __init__(self) -> None:
        """Raises EngineError where the bindings, the driver or the GPU are missing."""
        if cuda is None:
            raise EngineError(NO_BINDINGS)
        self._free: list[Callable[[], Any]] = []
        error, count = cuda.cudaGetDeviceCount()
        if error != cuda.cudaError_t.cudaSuccess or not count:
            raise EngineError(NO_GPU)
        properties = check_status("describe itself", cuda.cudaGetDeviceProperties(0))
        self.device = Device(properties.name.decode(), f"{properties.major}.{properties.minor}")

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        stream = int(check_status("make a stream", cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))
        self._free.append(lambda: cuda.cudaStreamDestroy(stream))
        return stream

    def memory(self, size: int) -> int:
        """The address of `size` bytes on the device, aligned to 256."""
        address = int(check_status(f"allocate {size:,} bytes", cuda.cudaMalloc(size)))
        self._free.append(lambda: cuda.cudaFree(address))
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Zeros in host memory that the GPU reads and writes without a detour."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(check_status(f"pin {size:,} bytes", cuda.cudaHostAlloc(size, cuda.cudaHostAllocDefault)))
        self._free.append(lambda: cuda.cudaFreeHost(address))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Begin to copy a pinned, contiguous array to the device."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        check_status("copy to it", cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Begin to fill a pinned, contiguous array from the device."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check_status("copy from it", cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done all that was begun on it."""
        check_status("finish its work", cuda.cudaStreamSynchronize(stream))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """A graph of what `enqueue` begins on the stream; nothing of it runs until the graph is launched."""
        # Of this thread alone: what other threads do meanwhile on other streams disturbs nothing.
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
        """Begin to run a captured graph."""
        check_status("launch a graph", cuda.cudaGraphLaunch(graph, stream))

    def close(self) -> None:
        """Free everything, the youngest first; what a broken GPU refuses to free is left to the end of the process."""
        while self._free:
            self._free.pop()()


def check_status(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call beside its status; raises EngineError where the status is an error."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        is_full = error == cuda.cudaError_t.cudaErrorMemoryAllocation
        advice = "use a smaller max_batch or fewer streams" if is_full else "look at nvidia-smi, and start again"
        raise EngineError(f"the GPU could not {what} ({error.name}): {advice}")
    return values[0] if values else None
