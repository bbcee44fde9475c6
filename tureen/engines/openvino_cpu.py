"""Runs backbones by OpenVINO on the CPU: in fp32 and int8, and in bf16 if the CPU has bf16 arithmetic.

This is the fastest engine on x86.
"""

from __future__ import annotations

import functools
import queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import Precision
from tureen.engines.base import Artefact, EngineOptions, import_runtime
from tureen.errors import EngineError

NO_OPENVINO = "openvino is not installed: install Tureen with its extra [openvino]"


@functools.cache
def _core() -> Any:
    """Returns the only OpenVINO Core of this process. With several, OpenVINO 2026.4 may crash at exit.

    Raises EngineError if OpenVINO cannot be imported.
    """
    return import_runtime("openvino", NO_OPENVINO).Core()


class OpenVinoEngine:
    """A backbone compiled by OpenVINO.

    At most `options.streams` calls of `run` execute at the same time. Further calls wait. With one stream, a run uses
    all threads, for the lowest latency. With several streams, each run uses a share of the threads, for the highest
    throughput. In int8 only the matrix products are int8. The rest runs in bf16 if the CPU has bf16 arithmetic, else in
    fp32.
    """

    name = "openvino"

    def __init__(self, artefact: Artefact, precision: Precision, options: EngineOptions) -> None:
        """Raises EngineError if OpenVINO is missing, the CPU has no such precision, or the graph does not load."""
        core = _core()
        import openvino as ov

        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "fp16":
            raise EngineError("openvino does not run fp16 on a CPU: use fp32, bf16 or int8")
        if precision == "bf16" and not has_bf16:
            raise EngineError("this CPU has no bfloat16 arithmetic: use fp32")
        settings: dict[str, Any] = {
            # Without a hint OpenVINO chooses bf16 if it can.
            "INFERENCE_PRECISION_HINT": "bf16" if precision != "fp32" and has_bf16 else "f32",
            "INFERENCE_NUM_THREADS": options.threads,
            "NUM_STREAMS": options.streams,
            "PERFORMANCE_HINT": "LATENCY" if options.streams == 1 else "THROUGHPUT",
        }
        if options.cache is not None:
            settings["CACHE_DIR"] = str(options.cache / "openvino")
        try:
            compiled = core.compile_model(core.read_model(artefact.data), "CPU", settings)
        except RuntimeError as error:
            raise EngineError("openvino cannot load this backbone: export the model again") from error
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(options.streams):
            self._requests.put(compiled.create_infer_request())
        self.precision: Precision = precision
        self.version: str = ov.__version__.split("-")[0]

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        request = self._requests.get()
        try:
            results = request.infer({PIXELS_INPUT: pixels, TOKEN_INPUT: tokens}, share_inputs=True)
            return np.array(results[LOGITS_OUTPUT])
        finally:
            self._requests.put(request)

    def close(self) -> None:
        del self._requests
