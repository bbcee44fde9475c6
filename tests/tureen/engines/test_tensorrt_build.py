"""Plans really compiled, by TensorRT-RTX, which needs no GPU for it; what they answer is not known without one."""

import re

import pytest
import tensorrt_rtx as trt
import torch
from onnx import TensorProto, helper

from export.graph import onnx_graph
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import BACKBONE
from tureen.engines import compile_engine
from tureen.engines.tensorrt_build import build_plan, load_timing_cache, save_timing_cache
from tureen.engines.tensorrt_run import library_logger
from tureen.errors import EngineError

VIT_B16 = ViTConfig(image_size=224, patch_size=16, width=768, depth=12, heads=12, classes=1000)
NO_GPU = "this machine has no NVIDIA GPU, or no driver for it"


def build(graph, precision="fp32", engine="tensorrt-rtx", **options):
    return build_plan(graph, engine=engine, precision=precision, backbone_sha256="a" * 64, **options)


def described(plan):
    """Returns the tensor names in the bytes of a plan. Without a GPU, no more of a plan can be read."""
    return set(re.findall(rb"pixels|cls_token|logits", plan))


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def graphs(bundle, checkpoint):
    return {"fp32": bundle.graph, **{p: onnx_graph(checkpoint.model, p) for p in ("fp16", "bf16")}}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_plan_is_built_without_a_gpu_and_its_record_has_its_binding(graphs, precision):
    plan, record = build(graphs[precision], precision, batch=(1, 4, 16))
    assert len(plan) > len(graphs[precision])
    assert described(plan) == {b"pixels", b"cls_token", b"logits"}
    assert (record.engine, record.precision, record.graph_sha256) == ("tensorrt-rtx", precision, "a" * 64)
    assert record.runtime_version == trt.__version__
    assert record.batch == (1, 4, 16)
    assert record.device == ""
    assert record.compute_capabilities == ["8.0", "8.6", "8.9", "12.0", "12.1"]


def test_halved_weights_make_a_smaller_plan():
    """Of a model whose weights, 8 MB in fp32, are most of its plan."""
    model = DualTokenViT(ViTConfig(image_size=8, patch_size=4, width=256, depth=4, heads=4, mlp_ratio=2, classes=10))
    graphs = {precision: onnx_graph(model.eval(), precision) for precision in ("fp16", "fp32")}
    assert len(build(graphs["fp16"], "fp16")[0]) < 0.75 * len(build(graphs["fp32"])[0])


def test_a_plan_is_built_for_the_requested_compute_capabilities(graphs):
    _, record = build(graphs["fp16"], "fp16", compute_capabilities=["7.5", "8.9"])
    assert record.compute_capabilities == ["7.5", "8.9"]


def test_a_gpu_that_lacks_the_precision_is_named(graphs):
    with pytest.raises(EngineError, match=r"cannot compile this graph in bf16 for compute capability 7\.5: try"):
        build(graphs["bf16"], "bf16", compute_capabilities=["7.5"])


def test_a_gpu_unknown_to_rtx_is_refused_with_an_alternative(graphs):
    with pytest.raises(EngineError, match=r"cannot build for compute capability 9\.0: use tensorrt there"):
        build(graphs["fp32"], compute_capabilities=["9.0"])


def test_opening_a_plan_without_a_gpu_fails_by_name(graphs):
    plan, record = build(graphs["fp32"])
    with pytest.raises(EngineError, match=NO_GPU):
        compile_engine(plan, "tensorrt-rtx", plan=record)


def test_the_same_graph_is_taken_from_a_bundle(bundle):
    digest = bundle.manifest.files[BACKBONE].sha256
    _, record = build_plan(bundle.graph, engine="tensorrt-rtx", precision="fp32", backbone_sha256=digest)
    assert record.graph_sha256 == digest


@pytest.mark.parametrize(
    ("depth", "precision"),
    [(1, "fp16"), *(pytest.param(12, precision, marks=pytest.mark.slow) for precision in ("fp32", "fp16", "bf16"))],
)
def test_a_vit_b16_is_built(depth, precision):
    torch.manual_seed(0)
    graph = onnx_graph(DualTokenViT(VIT_B16.model_copy(update={"depth": depth})).eval(), precision)
    plan, _ = build(graph, precision)
    assert len(plan) > len(graph)


def test_progress_is_reported_step_by_step(graphs):
    steps = []
    build(graphs["fp32"], on_progress=lambda done, of: steps.append((done, of)))
    assert steps == sorted(steps)
    assert all(1 <= done <= of for done, of in steps)
    assert len(steps) > 1


@pytest.mark.parametrize("batch", [(4, 2, 8), (1, 16, 8)])
def test_a_batch_range_that_does_not_ascend_is_refused(graphs, batch):
    with pytest.raises(EngineError, match="give the smallest, best and largest, ascending"):
        build(graphs["fp32"], batch=batch)


@pytest.mark.parametrize("graph", [b"", b"not ONNX" * 100, b"\0"])
def test_a_file_that_is_no_graph_is_refused(graph):
    with pytest.raises(EngineError, match="export the model again"):
        build(graph)


def test_a_damaged_graph_is_refused(graphs):
    with pytest.raises(EngineError, match="export the model again"):
        build(graphs["fp32"][:100_000])


def single_node(operator, pixel_type=TensorProto.UINT8):
    pixels = helper.make_tensor_value_info("pixels", pixel_type, ["batch", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node(operator, ["pixels"], ["logits"], name="/home/somebody/secret")
    proto = helper.make_model(
        helper.make_graph([node], "graph", [pixels], [logits]), opset_imports=[helper.make_opsetid("", 20)]
    )
    return proto.SerializeToString()


def test_a_missing_operator_is_named_without_other_text_of_the_library():
    with pytest.raises(EngineError) as error:
        build(single_node("Nonsense"))
    assert str(error.value) == "tensorrt-rtx has no Nonsense as this graph uses it: use another engine"


def test_a_graph_that_is_no_backbone_is_refused():
    with pytest.raises(EngineError, match="cannot use this graph, it is not a backbone"):
        build(single_node("Relu", TensorProto.FLOAT))


def test_a_plan_for_tensorrt_is_built_only_if_it_is_installed(graphs):
    with pytest.raises(
        EngineError, match=r"is not installed: install Tureen with its extra \[tensorrt\]|no NVIDIA GPU"
    ):
        build(graphs["fp32"], engine="tensorrt")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")  # there the same calls keep nothing
@pytest.mark.parametrize("kept", [None, b"damaged"])
def test_timings_are_saved_as_one_file_and_a_damaged_file_is_replaced(tmp_path, kept):
    file = tmp_path / "cache" / "GPU.timings"
    if kept is not None:
        file.parent.mkdir()
        file.write_bytes(kept)
    config = trt.Builder(library_logger(trt)).create_builder_config()
    load_timing_cache(config, file)
    save_timing_cache(config, file)
    assert file.read_bytes() not in (b"", kept)
    assert list(file.parent.iterdir()) == [file]
    load_timing_cache(config, file)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")
def test_timings_that_cannot_be_saved_fail_no_plan(tmp_path, caplog):
    (tmp_path / "cache").write_bytes(b"")  # a file where the directory should be
    config = trt.Builder(library_logger(trt)).create_builder_config()
    load_timing_cache(config, tmp_path / "GPU.timings")
    save_timing_cache(config, tmp_path / "cache" / "GPU.timings")
    assert "could not be saved" in caplog.text
