"""Graphs with fp16 or bf16 types: engines on a CPU give the fp32 logits of PyTorch, up to rounding."""

import numpy as np
import onnx
import pytest
import torch

from export.errors import ExportError
from export.graph import Backbone, onnx_graph
from tureen.engines import compile_engine
from tureen.engines.openvino_cpu import _core
from tureen.tokens import mix_rows

ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # half a unit in the last place


@pytest.fixture(scope="module", params=ROUNDING)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def graph(checkpoint, precision):
    return onnx_graph(checkpoint.model, precision)


@pytest.fixture(scope="module")
def rows(checkpoint):
    """Pixels, a token for each at a different β, and the fp32 logits of PyTorch."""
    model = checkpoint.model
    pixels = checkpoint.test.pixels[:128]
    tokens = mix_rows(*(model.soup(beta).numpy(force=True) for beta in (0, 1)), np.linspace(0, 1, len(pixels)))
    with torch.no_grad():
        logits = Backbone(model).eval()(torch.from_numpy(pixels), torch.from_numpy(tokens)).numpy()
    return pixels, tokens, logits


def openvino_logits(graph, pixels, tokens):
    core = _core()  # the process has but one
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(model({"pixels": pixels, "cls_token": tokens})["logits"])


def onnxruntime_logits(graph, pixels, tokens):
    return compile_engine(graph, "onnxruntime").run(pixels, tokens)


@pytest.mark.parametrize("run", [openvino_logits, onnxruntime_logits])
def test_a_low_precision_graph_gives_pytorchs_logits_to_its_rounding(graph, precision, rows, run):
    if precision == "bf16" and run is onnxruntime_logits:
        pytest.skip("ONNX Runtime has no bf16 on a CPU")
    pixels, tokens, expected = rows
    difference = np.abs(run(graph, pixels, tokens) - expected).max()
    # A dozen roundings on the way to logits near 12 add up to a few; none at all would be fp32 under a false name.
    rounding = ROUNDING[precision] * np.abs(expected).max()
    assert 0.1 * rounding < difference < 4 * rounding


def test_blocks_and_head_have_the_precision_and_images_and_patch_embedding_float32(graph, precision):
    proto = onnx.load_from_string(graph)
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    float32 = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert {types[name] for name in types if "blocks" in name or "head" in name} == {wanted}
    assert any(name.startswith("embed") for name in float32)


def test_the_weights_of_the_model_are_unchanged(checkpoint, graph):
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}


def test_pixels_are_cast_before_all_else(graph):
    """TensorRT supports no operation on a uint8 tensor but a cast."""
    proto = onnx.load_from_string(graph)
    assert [node.op_type for node in proto.graph.node if "pixels" in node.input] == ["Cast"]


def test_a_precision_that_torch_lacks_is_refused_with_the_choice(checkpoint):
    with pytest.raises(ExportError, match="torch has no int8: choose fp32, fp16, bf16"):
        onnx_graph(checkpoint.model, "int8")
