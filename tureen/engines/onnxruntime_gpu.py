"""Runs backbones by ONNX Runtime on an NVIDIA GPU. The back end is ONNX Runtime's CUDA or TensorRT provider.

With either provider, batches have fixed sizes and run from fixed buffers (I/O binding). A batch between two sizes is
padded. The CUDA provider records a CUDA graph for each size. The TensorRT provider records none, because it would
replay the first graph for all sizes. `tensorrt_run` runs TensorRT without ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.graph import read_graph_file
from tureen.bundle.manifest import Precision
from tureen.engines.base import Artefact, EngineOptions
from tureen.engines.buckets import bucket_sizes, split_batch
from tureen.engines.cuda import Cuda
from tureen.engines.onnxruntime_cpu import import_onnxruntime, open_session, session_options
from tureen.errors import EngineError

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
BEST_BATCH = 32
TENSORRT_MAJOR = 10  # libnvinfer.so.10 is what onnxruntime-gpu 1.30 and 1.31 are linked with


@dataclass(frozen=True)
class _Bucket:
    """The buffers for one batch size. ONNX Runtime's I/O binding connects them to the graph's inputs and outputs."""

    binding: Any
    inputs: Mapping[str, Any]  # OrtValues on the device
    logits: Any  # OrtValue on the device
    run_options: Any  # onnxruntime.RunOptions of each run


class BoundSession:
    """An ONNX Runtime session that runs batches from fixed buffers. Concurrent calls of `run` execute one by one."""

    def __init__(self, ort: Any, session: Any, *, device: str, max_batch: int, has_graphs: bool) -> None:
        """Allocates no buffers. The first run of each batch size allocates the buffers for that size.

        ort: the module `onnxruntime`. device: "cuda" or "cpu", as ONNX Runtime names it. has_graphs: whether the
        provider of the session records CUDA graphs.
        """
        self._ort, self._session, self._device, self._has_graphs = ort, session, device, has_graphs
        self._sizes = bucket_sizes(max_batch)
        self._buckets: dict[int, _Bucket] = {}
        self._lock = threading.Lock()
        self._rows = {value.name: tuple(value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        logits = np.empty((len(pixels), *self._rows[LOGITS_OUTPUT]), np.float32)
        with self._lock:
            for rows, size in split_batch(len(pixels), self._sizes):
                logits[rows] = self._run(size, pixels[rows], tokens[rows])
        return logits

    def _run(self, size: int, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        if size not in self._buckets:
            self._buckets[size] = self._bind(size)
        bucket = self._buckets[size]
        for name, rows in ((PIXELS_INPUT, pixels), (TOKEN_INPUT, tokens)):
            bucket.inputs[name].update_inplace(_pad_rows(rows, size))
        self._session.run_with_iobinding(bucket.binding, bucket.run_options)
        logits: NDArray[np.float32] = bucket.logits.numpy()[: len(pixels)]
        return logits

    def _bind(self, size: int) -> _Bucket:
        def buffer(name: str, dtype: type[np.generic]) -> Any:
            return self._ort.OrtValue.ortvalue_from_numpy(np.zeros((size, *self._rows[name]), dtype), self._device, 0)

        inputs = {PIXELS_INPUT: buffer(PIXELS_INPUT, np.uint8), TOKEN_INPUT: buffer(TOKEN_INPUT, np.float32)}
        logits = buffer(LOGITS_OUTPUT, np.float32)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(LOGITS_OUTPUT, logits)
        run_options = self._ort.RunOptions()
        if self._has_graphs:
            run_options.add_run_config_entry("gpu_graph_id", str(self._sizes.index(size) + 1))
        return _Bucket(binding, inputs, logits, run_options)


class OrtGpuEngine:
    """A backbone in an ONNX Runtime session on the GPU, with the CUDA or the TensorRT provider."""

    def __init__(self, name: str, artefact: Artefact, precision: Precision, options: EngineOptions) -> None:
        """Raises EngineError if onnxruntime-gpu, the GPU or a library is missing, or if the graph does not load.

        name: "onnxruntime-cuda" or "onnxruntime-tensorrt".
        """
        ort = import_onnxruntime("gpu")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries; `open_session` reports them
            ort.preload_dlls()  # CUDA and cuDNN from the nvidia-… wheels
        if name == "onnxruntime-cuda":
            provider, provider_options = CUDA, {"enable_cuda_graph": "1", "use_tf32": "0"}
        else:
            require_tensorrt_10(importlib.metadata.version)
            provider = TENSORRT
            provider_options = tensorrt_options(
                artefact.data, options, version=ort.__version__, device=Cuda().device.name
            )
        session = open_session(ort, artefact.data, session_options(ort, 1), provider, provider_options)
        self._session: BoundSession | None = BoundSession(
            ort, session, device="cuda", max_batch=options.max_batch, has_graphs=provider == CUDA
        )
        self.name = name
        self.precision: Precision = precision
        self.version: str = ort.__version__

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        assert self._session is not None
        return self._session.run(pixels, tokens)

    def close(self) -> None:
        self._session = None


def require_tensorrt_10(version: Callable[[str], str]) -> None:
    """Raises EngineError if the installed TensorRT has another major version than ONNX Runtime needs.

    Does not check a TensorRT that was not installed by pip. version: returns the version of a package, as
    `importlib.metadata.version` does.
    """
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            installed = version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if int(installed.partition(".")[0]) != TENSORRT_MAJOR:
            raise EngineError(
                f"onnxruntime's TensorRT provider needs TensorRT {TENSORRT_MAJOR}, installed is {package} {installed}: "
                f"use --engine tensorrt or onnxruntime-cuda, or install {package}=={TENSORRT_MAJOR}.*"
            )


def tensorrt_options(graph: bytes, options: EngineOptions, *, version: str, device: str) -> dict[str, str]:
    """Returns the options of the TensorRT provider: the batch sizes to compile for, 1 to max_batch, and the cache.

    graph: defines the precision. version: of ONNX Runtime. device: the name of the GPU. ONNX Runtime does not check
    that a cached TensorRT engine fits the graph, the version and the GPU. So the name of the cache directory identifies
    all three and max_batch.
    """
    rows = {tensor.name: (tensor.shape or [])[1:] for tensor in read_graph_file(graph).inputs}

    def shapes(batch: int) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in rows.items())

    chosen = {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(min(BEST_BATCH, options.max_batch)),
        "trt_profile_max_shapes": shapes(options.max_batch),
    }
    if options.cache is None:
        return chosen
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device)
    name = f"{hashlib.sha256(graph).hexdigest()[:16]}-{version}-{gpu}-{options.max_batch}"
    directory = options.cache / "onnxruntime-tensorrt" / name
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return chosen | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(directory),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(directory),
    }


def _pad_rows(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Returns a contiguous array of `size` rows: the given rows, then rows of zeros."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded
