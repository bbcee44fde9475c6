"""OpenVINO on the CPU: the fastest engine on x86, and the one with bfloat16 where the CPU has it."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tureen.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT, Precision
from tureen.errors import EngineError

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@functools.cache
def _core() -> Any:
    """The process's one Core: with several, OpenVINO 2026.4 may crash when they are taken down."""
    import openvino as ov

    return ov.Core()


class OpenVinoEngine:
    """A backbone compiled by OpenVINO; concurrent calls of `run` take turns."""

    name = "openvino"

    def __init__(self, graph: bytes, *, precision: Precision = "fp32", threads: int) -> None:
        """Raises EngineError where OpenVINO is missing, the CPU lacks the precision, or the graph does not load."""
        try:
            import openvino as ov
        except ImportError:
            raise EngineError("openvino is not installed: install Tureen with its extra [openvino]") from None
        core = _core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU has no bfloat16 arithmetic: use fp32")
        try:
            model = core.read_model(graph)
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _HINTS[precision],  # left alone, it picks bf16 where it can
                    "INFERENCE_NUM_THREADS": threads,
                    "PERFORMANCE_HINT": "LATENCY",
                },
            )
        except RuntimeError as error:
            raise EngineError("openvino cannot load this backbone: export the model again") from error
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.precision = precision
        self.version: str = ov.__version__.split("-")[0]

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        with self._lock:
            results = self._request.infer({PIXELS_INPUT: pixels, TOKEN_INPUT: tokens}, share_inputs=True)
            return np.array(results[LOGITS_OUTPUT])

    def close(self) -> None:
        del self._request
