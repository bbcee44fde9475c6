"""ONNX Runtime on the CPU: the engine that runs everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tureen.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT, Precision
from tureen.engines.base import Artefact, EngineOptions
from tureen.errors import EngineError


class OrtEngine:
    """A backbone in an ONNX Runtime session; `run` may be called from several threads at once."""

    name = "onnxruntime"

    def __init__(self, artefact: Artefact, precision: Precision, options: EngineOptions) -> None:
        """Raises EngineError where ONNX Runtime is not installed, or the graph does not load."""
        if precision not in ("fp32", "int8"):
            raise EngineError(f"onnxruntime has no {precision} on a CPU: use fp32 or int8, or openvino")
        try:
            import onnxruntime as ort
        except ImportError:
            raise EngineError("onnxruntime is not installed: install Tureen with its extra [cpu]") from None
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, options.threads // options.streams)
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # A spinning thread takes the core that decodes the next image.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(artefact.data, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions have no common base
            raise EngineError("onnxruntime cannot load this backbone: export the model again") from error
        self.precision: Precision = precision
        self.version: str = ort.__version__

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        logits: NDArray[np.float32]
        (logits,) = self._session.run([LOGITS_OUTPUT], {PIXELS_INPUT: pixels, TOKEN_INPUT: tokens})
        return logits

    def close(self) -> None:
        del self._session
