"""The engines that an export accepts or rejects."""

import hashlib

import numpy as np
import pytest

from export.artefacts import BundleArtefacts
from export.errors import ExportError, ParityError
from export.parity import ParityLimits
from export.proving import EngineRequest, candidate_engines, prove_engines
from export.reference import compute_reference
from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine


@pytest.fixture(scope="module")
def graph(bundle_path):
    return load_bundle(bundle_path).graph


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.test.pixels[:64])


@pytest.fixture
def artefacts(graph, checkpoint, expected):
    return BundleArtefacts(checkpoint.model, graph, expected)


class StandIn:
    """A substitute for a GPU engine: runs the graph in ONNX Runtime, and adds an error to the logits."""

    def __init__(self, graph, record, error=0.0):
        self.engine, self.error, self.is_closed = compile_engine(graph, "onnxruntime"), np.float32(error), False
        self.name, self.precision, self.version = record.engine, record.precision, record.runtime_version

    def run(self, pixels, tokens):
        return self.engine.run(pixels, tokens) + self.error

    def close(self):
        self.is_closed = True


def test_a_missing_engine_is_reported(artefacts, expected):
    with pytest.raises(ExportError, match="tensorrt, fp32 could not be proven: tensorrt fp32: "):
        prove_engines(artefacts, expected, EngineRequest(engines=["tensorrt"], precisions=["fp32"]), ParityLimits())


def test_an_unrequested_gpu_engine_is_not_tried_without_a_gpu(artefacts, expected):
    lines = []
    proven = prove_engines(artefacts, expected, EngineRequest(precisions=["fp32"]), ParityLimits(), report=lines.append)
    assert {row.engine for row in proven.rows} == {"onnxruntime", "openvino"}
    assert not any("left out" in line for line in lines)


RTX_FP32 = EngineRequest(engines=["tensorrt-rtx"], precisions=["fp32"])


def test_a_plan_that_is_as_pytorch_is_proven_and_bound(artefacts, graph, expected):
    opened = []

    def open_plan(engine, precision, artefact):
        opened.append(StandIn(graph, artefact.plan))
        return opened[-1]

    proven = prove_engines(artefacts, expected, RTX_FP32, ParityLimits(), open_artefact=open_plan)
    (row,) = proven.rows
    assert row.artefact == "engines/tensorrt-rtx-fp32.plan"
    assert (row.engine, row.engine_version) == ("tensorrt-rtx", proven.plans[row.artefact].runtime_version)
    assert row.max_abs_diff < 1e-4
    assert proven.plans[row.artefact].graph_sha256 == hashlib.sha256(graph).hexdigest()
    assert len(proven.files[row.artefact]) > len(graph)
    assert opened[0].is_closed


def test_a_plan_with_wrong_results_is_refused(artefacts, graph, expected):
    opened = []

    def open_plan(engine, precision, artefact):
        opened.append(StandIn(graph, artefact.plan, error=0.01))
        return opened[-1]

    with pytest.raises(ParityError, match=r"tensorrt-rtx fp32: largest logit difference 0\.01"):
        prove_engines(artefacts, expected, RTX_FP32, ParityLimits(), open_artefact=open_plan)
    assert opened[0].is_closed


def test_candidates_are_limited_to_the_request_and_int8_needs_images():
    (fp32,) = candidate_engines(["onnxruntime"], ["fp32"], has_calibration=False)
    assert fp32 == ("onnxruntime", "fp32", "backbone.onnx")
    assert not candidate_engines(["onnxruntime"], ["int9"], has_calibration=True)
    without = {precision for _, precision, _ in candidate_engines(["openvino"], has_calibration=False)}
    with_images = {precision for _, precision, _ in candidate_engines(["openvino"], has_calibration=True)}
    assert with_images - without == {"int8"}
