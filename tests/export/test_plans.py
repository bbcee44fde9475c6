import functools
import hashlib

import numpy as np
import pytest
import torch

from export.errors import ExportError, ParityError
from export.graph import Backbone, onnx_graph
from export.parity import ParityLimits, reference
from export.plans import compile_plans, prove_plan
from export.torch_plan import build_torch_plan, traced
from tureen.bundle import load_bundle
from tureen.engines import compile_engine
from tureen.engines.trt_build import build_plan
from tureen.errors import EngineError
from tureen.tokens import mix_rows


@pytest.fixture(scope="module")
def graph(bundle_path):
    return load_bundle(bundle_path).graph


@pytest.fixture(scope="module")
def expected(checkpoint):
    return reference(checkpoint.model, checkpoint.held_out.pixels[:64])


@pytest.fixture
def build(graph):
    digest = hashlib.sha256(graph).hexdigest()
    return functools.partial(build_plan, graph, engine="tensorrt-rtx", precision="fp32", backbone_sha256=digest)


class StandIn:
    """An engine that stands for a GPU's: the graph in ONNX Runtime, under the plan's name, with an error if told."""

    def __init__(self, graph, record, error=0.0):
        self.engine, self.error, self.is_closed = compile_engine(graph, "onnxruntime"), np.float32(error), False
        self.name, self.precision, self.version = record.engine, record.precision, record.runtime_version

    def run(self, pixels, tokens):
        return self.engine.run(pixels, tokens) + self.error

    def close(self):
        self.is_closed = True


def test_without_a_gpu_plans_are_built_and_left_out_with_time_size_and_reason(graph, checkpoint, expected):
    graphs = {"fp32": graph, "bf16": onnx_graph(checkpoint.model, "bf16")}
    lines = []
    plans, reasons = compile_plans(graphs, ["tensorrt-rtx"], expected, ParityLimits(), report=lines.append)
    assert plans == {}
    assert len(reasons) == 2
    for precision, reason in zip(graphs, reasons, strict=True):
        assert reason.startswith(f"tensorrt-rtx {precision}: built in ")
        assert reason.endswith("bytes, not run here: this machine has no NVIDIA GPU, or no driver for it")
        assert f"left out: {reason}" in lines


def test_an_engine_that_is_missing_is_left_out_with_the_reason(graph, expected):
    plans, reasons = compile_plans({"fp32": graph}, ["tensorrt"], expected, ParityLimits())
    assert plans == {}
    assert reasons[0].startswith("tensorrt fp32: ")


def test_a_plan_that_is_as_pytorch_is_proven_and_told_by_its_file(build, graph, expected):
    opened = []

    def open_plan(data, record):
        opened.append(StandIn(graph, record))
        return opened[-1]

    plan = prove_plan(build, expected, ParityLimits(), open_plan=open_plan)
    assert plan.parity.artefact == "engines/tensorrt-rtx-fp32.plan"
    assert (plan.parity.engine, plan.parity.engine_version) == ("tensorrt-rtx", plan.record.runtime_version)
    assert plan.parity.max_abs_diff < 1e-4
    assert opened[0].is_closed


def test_a_plan_that_answers_wrongly_is_refused(build, graph, expected):
    opened = []

    def open_plan(data, record):
        opened.append(StandIn(graph, record, error=0.01))
        return opened[-1]

    with pytest.raises(ParityError, match=r"tensorrt-rtx fp32: largest logit difference 0\.01"):
        prove_plan(build, expected, ParityLimits(), open_plan=open_plan)
    assert opened[0].is_closed


def test_torch_tensorrt_without_its_driver_says_what_it_needs(checkpoint, capsys):
    with pytest.raises((ExportError, EngineError), match="needs an NVIDIA GPU with its driver"):
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
