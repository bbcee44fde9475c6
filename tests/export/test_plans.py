import hashlib
import re

import numpy as np
import pytest
import torch

from export.artefacts import BundleArtefacts
from export.errors import ExportError, ParityError
from export.graph import Backbone
from export.parity import ParityLimits
from export.proving import EngineRequest, prove_engines
from export.reference import compute_reference
from export.torch_plan import build_torch_plan, traced
from tureen.bundle.bundle import load_bundle
from tureen.cli import main
from tureen.engines import compile_engine
from tureen.errors import EngineError
from tureen.tokens import mix_rows


@pytest.fixture(scope="module")
def graph(bundle_path):
    return load_bundle(bundle_path).graph


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.held_out.pixels[:64])


@pytest.fixture
def artefacts(graph, checkpoint, expected):
    return BundleArtefacts(checkpoint.model, graph, expected)


class StandIn:
    """An engine that stands for a GPU's: the graph in ONNX Runtime, under the plan's name, with an error if told."""

    def __init__(self, graph, record, error=0.0):
        self.engine, self.error, self.is_closed = compile_engine(graph, "onnxruntime"), np.float32(error), False
        self.name, self.precision, self.version = record.engine, record.precision, record.runtime_version

    def run(self, pixels, tokens):
        return self.engine.run(pixels, tokens) + self.error

    def close(self):
        self.is_closed = True


def test_without_a_gpu_plans_are_built_and_left_out_with_time_size_and_reason(digits_run, tmp_path, capsys):
    arguments = ["export", str(digits_run), "--out", str(tmp_path / "bundle"), "--engine", "tensorrt-rtx"]
    assert main([*arguments, "--precision", "fp32", "--precision", "bf16"]) == 1
    error = capsys.readouterr().err
    for precision in ("fp32", "bf16"):
        assert re.search(rf"built a plan for tensorrt-rtx {precision} in \d+\.\d s, [\d,]+ bytes", error)
        reason = "built, but it does not run on this machine: this machine has no NVIDIA GPU, or no driver for it"
        assert f"left out: tensorrt-rtx {precision}: {reason}" in error
    assert "tensorrt-rtx, fp32, bf16 could not be proven: " in error
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_missing_is_told(artefacts, expected):
    with pytest.raises(ExportError, match="tensorrt, fp32 could not be proven: tensorrt fp32: "):
        prove_engines(artefacts, expected, EngineRequest(engines=["tensorrt"], precisions=["fp32"]), ParityLimits())


def test_an_engine_that_needs_a_gpu_is_not_tried_where_there_is_none_and_nobody_asked(artefacts, expected):
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


def test_a_plan_that_answers_wrongly_is_refused(artefacts, graph, expected):
    opened = []

    def open_plan(engine, precision, artefact):
        opened.append(StandIn(graph, artefact.plan, error=0.01))
        return opened[-1]

    with pytest.raises(ParityError, match=r"tensorrt-rtx fp32: largest logit difference 0\.01"):
        prove_engines(artefacts, expected, RTX_FP32, ParityLimits(), open_artefact=open_plan)
    assert opened[0].is_closed


def test_torch_tensorrt_builds_for_tensorrt_alone(graph, checkpoint, expected):
    artefacts = BundleArtefacts(checkpoint.model, graph, expected, builder="torch")
    with pytest.raises(ExportError, match="not for tensorrt-rtx: omit --plan-builder"):
        artefacts.get("tensorrt-rtx", "fp32", "engines/tensorrt-rtx-fp32.plan")


def test_torch_tensorrt_without_its_driver_says_what_it_needs(checkpoint, capsys):
    with pytest.raises((ExportError, EngineError), match=r"extra \[torch-tensorrt\], an NVIDIA GPU and its driver"):
        build_torch_plan(checkpoint.model, precision="fp16", backbone_sha256="0" * 64)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_program_that_torch_tensorrt_compiles_is_the_backbone_at_any_batch(checkpoint, precision):
    model = checkpoint.model
    program = traced(model, precision, 128, device="cpu")
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    assert names == ["pixels", "cls_token"]  # and so are the plan's inputs
    for rows in (1, 3, 128):
        pixels = checkpoint.held_out.pixels[:rows]
        tokens = mix_rows(*(model.soup(b).numpy(force=True) for b in (0, 1)), np.linspace(0, 1, rows))
        inputs = torch.from_numpy(pixels), torch.from_numpy(tokens)
        with torch.no_grad():
            logits, wanted = program.module()(*inputs), Backbone(model).eval()(*inputs)
        assert logits.dtype == torch.float32
        # Logits near 12, a few roundings of half a unit in the last place each.
        tolerance = {"fp32": 1e-4, "fp16": 4 * 2**-11 * 12, "bf16": 4 * 2**-8 * 12}[precision]
        np.testing.assert_allclose(logits.numpy(), wanted.numpy(), atol=tolerance)
