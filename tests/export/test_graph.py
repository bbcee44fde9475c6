"""The ONNX graph: its interface, and the normalisation folded into the patch embedding."""

import numpy as np
import onnx
import pytest
import torch

from export.errors import ExportError
from export.graph import Backbone, CompiledBackbone, can_fold, onnx_graph, require_exportable
from export.parity import ParityLimits, check_parity, measure_parity
from export.reference import compute_reference
from tests.randomised import randomised
from training.models.resnet import DualResNet
from training.models.shapes import ResNetConfig, ViTConfig
from training.models.vit import DualTokenViT
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
def test_both_opsets_agree_with_pytorch(model, images, opset):
    pixels, tokens = images
    exact = Backbone(model)(torch.from_numpy(pixels), torch.from_numpy(tokens)).numpy()
    graph = onnx_graph(model, opset=opset)
    assert onnx.load_from_string(graph).opset_import[0].version == opset
    assert ("Attention" in {node.op_type for node in onnx.load_from_string(graph).graph.node}) == (opset == 23)
    for name in ("onnxruntime", "openvino"):
        engine = compile_engine(graph, name)
        np.testing.assert_allclose(engine.run(pixels, tokens), exact, atol=1e-4)  # the export's own limit in fp32
        engine.close()


def test_the_graph_has_the_promised_interface(bundle, checkpoint):
    graph = onnx.load_from_string(bundle.graph)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "pixels": ["batch", 8, 8, 3],
        "cls_token": ["batch", checkpoint.model.config.width],
        "logits": ["batch", 10],
    }
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [20]
    assert {node.domain for node in graph.graph.node} == {""}


def test_the_graph_contains_no_path_of_the_exporting_machine(bundle):
    assert b".py" not in bundle.graph
    assert b"/home" not in bundle.graph


@pytest.mark.parametrize(("pool", "stem"), [("mean", "patch"), ("token", "patch"), ("mean", "conv")])
def test_other_shapes_poolings_and_stems_export_and_agree(pool, stem):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=12, patch_size=4, width=24, depth=1, heads=3, classes=3, pool=pool, stem=stem, std=(0.2, 0.3, 0.4)
    )
    model = DualTokenViT(config).eval().requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    row = measure_parity(compile_engine(onnx_graph(model), "onnxruntime"), compute_reference(model, pixels))
    check_parity(row, ParityLimits())


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(
    "option",
    [{"registers": 4}, {"pre_norm": True, "mlp": "quick_gelu"}, {"mlp": "swiglu", "mlp_ratio": 1.5}, {"qk_norm": True}],
    ids=str,
)
def test_options_of_third_party_models_export_and_agree(option, opset):
    torch.manual_seed(0)
    model = randomised(DualTokenViT(CONFIG.model_copy(update=option))).requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    engine = compile_engine(onnx_graph(model, opset=opset), "onnxruntime")
    check_parity(measure_parity(engine, compute_reference(model, pixels)), ParityLimits())


@pytest.mark.parametrize("adapter", ["norm", "both", "none"])
def test_only_a_class_token_can_be_an_input_of_the_graph(adapter):
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=1, classes=2)
    assert require_exportable(DualTokenViT(config)).config == config
    with pytest.raises(ExportError, match=f"the model's adapter is '{adapter}'"):
        require_exportable(DualTokenViT(config.model_copy(update={"adapter": adapter})))
    with pytest.raises(ExportError, match="the model's adapter is 'dual'"):
        require_exportable(DualResNet(ResNetConfig(depth=18, image_size=8, classes=2, stem="small", width=8)))
