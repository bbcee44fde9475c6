"""Builds the files that engines run, on demand: a graph of the backbone in each precision, and plans for GPUs.

A plan is a graph that TensorRT has compiled for one kind of GPU.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.graph import DTYPES, onnx_graph
from export.quantization import int8_graph
from export.reference import Reference
from export.torch_plan import build_torch_plan
from training.models.vit import DualTokenViT
from tureen.bundle.manifest import BACKBONE, EngineName, FileName, PlanRecord, Precision, graph_name, plan_name
from tureen.engines.base import Artefact
from tureen.engines.tensorrt_build import build_plan
from tureen.preprocess import Pixels

PlanBuilder = Literal["onnx", "torch"]


class BundleArtefacts:
    """Builds the files of a bundle that engines run. Builds each graph once, for all engines.

    fp32: the content of backbone.onnx. expected: the tokens, and the logits that PyTorch computes with them.
    calibration: function that returns the images for the calibration of int8; None: int8 cannot be built. builder:
    compiler of plans; "onnx" is the ONNX parser of TensorRT, "torch" is torch-tensorrt. cache: directory for the kernel
    timings of the compiler; None: no cache. report: called with a message for each step.
    """

    def __init__(
        self,
        model: DualTokenViT,
        fp32: bytes,
        expected: Reference,
        *,
        calibration: Callable[[], Pixels] | None = None,
        builder: PlanBuilder = "onnx",
        cache: Path | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model, self._expected = model, expected
        self._calibration, self._builder, self._cache, self._report = calibration, builder, cache, report
        self._graphs: dict[FileName, bytes] = {BACKBONE: fp32}

    def get(self, engine: EngineName, precision: Precision, name: FileName) -> Artefact:
        """Returns the file `name`, a graph or a plan that `engine` runs in `precision`.

        The first call for a graph builds the graph, and later calls return the same graph. Each call for a plan
        compiles the plan again. Raises ExportError if the build needs images for int8, NNCF or torch-tensorrt and they
        are missing. Raises EngineError if a plan cannot be compiled.
        """
        if name != plan_name(engine, precision):
            return Artefact(self._graph(name, precision))
        start = time.perf_counter()
        data, record = self._plan(engine, precision)
        seconds = time.perf_counter() - start
        self._report(f"built a plan for {engine} {precision} in {seconds:.1f} s, {len(data):,} bytes")
        return Artefact(data, record)

    def _graph(self, name: FileName, precision: Precision) -> bytes:
        if name not in self._graphs:
            self._graphs[name] = self._int8() if precision == "int8" else onnx_graph(self._model, precision)
        return self._graphs[name]

    def _int8(self) -> bytes:
        if self._calibration is None:
            raise ExportError("int8 needs images for calibration: add --data")
        pixels = self._calibration()
        self._report(f"quantising to int8, calibrated on {len(pixels)} images, each at a different β")
        tokens = self._expected.clean_token, self._expected.robust_token
        return int8_graph(self._graphs[BACKBONE], pixels, *tokens)

    def _plan(self, engine: EngineName, precision: Precision) -> tuple[bytes, PlanRecord]:
        digest = hashlib.sha256(self._graphs[BACKBONE]).hexdigest()
        if self._builder == "torch":
            if engine != "tensorrt":
                raise ExportError(f"torch-tensorrt builds plans for tensorrt, not for {engine}: omit --plan-builder")
            return build_torch_plan(self._model, precision=precision, backbone_sha256=digest, cache=self._cache)
        assert precision in DTYPES
        graph = self._graph(graph_name(precision), precision)
        return build_plan(graph, engine=engine, precision=precision, backbone_sha256=digest, cache=self._cache)
