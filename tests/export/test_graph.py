"""The ONNX graph: its interface, and the normalisation folded into the patch embedding."""

import numpy as np
import onnx
import pytest
import torch

from export.graph import Backbone, CompiledBackbone, can_fold, onnx_graph
from training.models.vit import DualTokenViT, ViTConfig
from tureen.engines import compile_engine

CONFIG = ViTConfig(
    image_size=16,
    patch_size=4,
    width=48,
    depth=2,
    heads=3,
    classes=5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DualTokenViT(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255  # the ends of the range, where an offset shows most
    return pixels, rng.normal(size=(9, 48)).astype(np.float32)


def test_folding_the_normalisation_changes_nothing_but_rounding(model, images):
    pixels, tokens = map(torch.from_numpy, images)
    torch.testing.assert_close(
        CompiledBackbone(model)(pixels, tokens), Backbone(model)(pixels, tokens), atol=1e-5, rtol=0
    )


def test_a_folded_graph_has_no_normalisation_left(model):
    def operators(folded):
        graph = onnx.load_from_string(onnx_graph(folded)).graph
        return [node.op_type for node in graph.node]

    convolutional = DualTokenViT(CONFIG.model_copy(update={"stem": "conv"})).eval().requires_grad_(False)
    assert "Div" not in operators(model)
    assert "Div" in operators(convolutional)  # its convolutions pad, so folding would change the border
    assert can_fold(model)
    assert not can_fold(convolutional)


@pytest.mark.parametrize("opset", [20, 23])
def test_both_opsets_answer_as_pytorch_does(model, images, opset):
    pixels, tokens = images
    exact = Backbone(model)(torch.from_numpy(pixels), torch.from_numpy(tokens)).numpy()
    graph = onnx_graph(model, opset=opset)
    assert onnx.load_from_string(graph).opset_import[0].version == opset
    assert ("Attention" in {node.op_type for node in onnx.load_from_string(graph).graph.node}) == (opset == 23)
    for name in ("onnxruntime", "openvino"):
        engine = compile_engine(graph, name)
        np.testing.assert_allclose(engine.run(pixels, tokens), exact, atol=1e-4)  # the export's own limit in fp32
        engine.close()
