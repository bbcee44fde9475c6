"""Runs backbones by ONNX Runtime on the CPU, in fp32 and int8. This engine runs on every machine.

The engines of ONNX Runtime on the GPU use two functions of this module. `import_onnxruntime` checks that exactly one
package of ONNX Runtime is installed. `open_session` opens sessions that never fall back to another device.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import Precision
from tureen.engines.base import Artefact, EngineOptions, import_runtime
from tureen.errors import EngineError

# All install the same Python package. The last one overwrites the others, and uninstalling one breaks the rest.
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")


def import_onnxruntime(extra: str) -> Any:
    """Returns the module `onnxruntime`.

    Raises EngineError if none or several of the packages that install this module are installed, or if the import
    fails. extra: the optional dependencies of Tureen to name in the message, such as "gpu" for `tureen[gpu]`.
    """
    require_one_package(filter(_is_installed, PACKAGES))
    return import_runtime("onnxruntime", f"onnxruntime is not installed: install Tureen with its extra [{extra}]")


def require_one_package(installed: Iterable[str]) -> None:
    """Raises EngineError if `installed` has several packages, because they overwrite each other's files.

    installed: the installed packages that contain the module `onnxruntime`.
    """
    found = sorted(installed)
    if len(found) > 1:
        raise EngineError(
            f"{' and '.join(found)} are both installed, and overwrite each other: pip uninstall {' '.join(found)}, "
            "then install Tureen with one of its extras [cpu] and [gpu]"
        )


def open_session(ort: Any, graph: bytes, settings: Any, provider: str, provider_options: dict[str, str]) -> Any:
    """Returns an ONNX Runtime session that runs the graph on the given provider.

    ort: the module `onnxruntime`. settings: its session options. provider: the back end of ONNX Runtime, such as
    "CUDAExecutionProvider". Raises EngineError if the graph or the provider does not load. Without this check, ONNX
    Runtime would silently use the CPU if the libraries or the GPU of the provider are missing.
    """
    if provider not in ort.get_available_providers():
        raise EngineError(f"this onnxruntime has no {provider}: install Tureen with its extra [gpu] instead of [cpu]")
    settings.log_severity_level = 4  # no long report of a missing library before the fallback
    try:
        session = ort.InferenceSession(graph, settings, providers=[(provider, provider_options)])
    except Exception as error:  # exceptions of the runtime have no common base
        raise EngineError("onnxruntime cannot load this backbone: export the model again") from error
    running = session.get_providers()[0]
    if running != provider:
        raise EngineError(
            f"onnxruntime cannot use {provider} and fell back to {running}: this machine lacks a GPU, its driver, "
            "or one of the libraries CUDA, cuDNN and TensorRT in the version that onnxruntime was built for"
        )
    return session


def session_options(ort: Any, threads: int) -> Any:
    """Returns options for an ONNX Runtime session. The operators run one after the other, each on `threads` threads.

    ort: the module `onnxruntime`.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # A spinning thread would occupy the core that decodes the next image.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


class OrtEngine:
    """A backbone in an ONNX Runtime session on the CPU.

    At most `options.streams` calls of `run` execute at the same time. Further calls wait.
    """

    name = "onnxruntime"

    def __init__(self, artefact: Artefact, precision: Precision, options: EngineOptions) -> None:
        """Raises EngineError if ONNX Runtime is not installed or the graph does not load."""
        ort = import_onnxruntime("cpu")
        settings = session_options(ort, options.threads // options.streams)
        self._session = open_session(ort, artefact.data, settings, "CPUExecutionProvider", {})
        self._streams = threading.BoundedSemaphore(options.streams)
        self.precision: Precision = precision
        self.version: str = ort.__version__

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        logits: NDArray[np.float32]
        with self._streams:
            (logits,) = self._session.run([LOGITS_OUTPUT], {PIXELS_INPUT: pixels, TOKEN_INPUT: tokens})
        return logits

    def close(self) -> None:
        del self._session


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
