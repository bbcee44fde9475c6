import json

import numpy as np
import onnx
import pytest
import torch

from export.errors import ExportError, ParityError
from export.graph import Backbone, onnx_graph, require_exportable
from export.parity import BATCH_SIZES, ParityLimits, check_parity, measure_parity
from export.pipeline import export_bundle
from export.proving import EngineRequest
from export.reference import BETAS, compute_reference
from training.models.resnet import DualResNet, ResNetConfig
from training.models.vit import DualTokenViT, ViTConfig
from tureen.bundle.bundle import load_bundle
from tureen.cli import main
from tureen.engines import compile_engine


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.held_out.pixels)


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


def test_the_graph_carries_no_path_of_the_machine_that_made_it(bundle):
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


@pytest.mark.parametrize("adapter", ["norm", "both", "none"])
def test_only_a_class_token_can_be_an_input_of_the_graph(adapter):
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=1, classes=2)
    assert require_exportable(DualTokenViT(config)).config == config
    with pytest.raises(ExportError, match=f"the model's adapter is '{adapter}'"):
        require_exportable(DualTokenViT(config.model_copy(update={"adapter": adapter})))
    with pytest.raises(ExportError, match="the model's adapter is 'dual'"):
        require_exportable(DualResNet(ResNetConfig(depth=18, image_size=8, classes=2, stem="small", width=8)))


def test_the_reference_is_what_was_evaluated(checkpoint, expected):
    """Clean accuracy from the export's reference equals the table's: one preprocessing, one meaning of β."""
    for row in checkpoint.accuracy:
        right = expected.images.logits[BETAS.index(row.beta)].argmax(1) == checkpoint.held_out.labels
        assert right.mean() == row.clean.value


def test_parity_is_measured_and_within_the_issue_of_record(bundle):
    rows = {(row.engine, row.precision): row for row in bundle.manifest.parity}
    fp32 = rows["onnxruntime", "fp32"]
    assert fp32.max_abs_diff <= 1e-4
    assert fp32.top1_agreement == 1
    assert fp32.n == 450
    assert tuple(fp32.betas) == BETAS
    assert tuple(fp32.batch_sizes) == BATCH_SIZES
    if ("openvino", "bf16") in rows:
        assert rows["openvino", "bf16"].top1_agreement >= 0.995


class Altered:
    """An engine that answers row 0 of every batch with row 1's token: what a batch that mixes rows up would do."""

    name, precision, version = "onnxruntime", "fp32", "0"

    def __init__(self, engine):
        self.engine = engine

    def run(self, pixels, tokens):
        tokens = tokens.copy()
        tokens[0] = tokens[-1]
        return self.engine.run(pixels, tokens)

    def close(self):
        self.engine.close()


def test_an_engine_that_mixes_up_tokens_fails_parity(bundle, expected):
    row = measure_parity(Altered(compile_engine(bundle.graph, "onnxruntime")), expected)
    with pytest.raises(ParityError, match="largest logit difference"):
        check_parity(row, ParityLimits())


class WrongWhenAlone:
    """A bf16 engine that is right in batches of 64 and answers something else in a batch of its own size."""

    name, precision, version = "openvino", "bf16", "0"

    def __init__(self, engine, size, error):
        self.engine, self.size, self.error = engine, size, error

    def run(self, pixels, tokens):
        logits = self.engine.run(pixels, tokens)
        if len(pixels) == self.size:
            logits[:, 0] += self.error
        return logits

    def close(self):
        self.engine.close()


@pytest.mark.parametrize("size", BATCH_SIZES)
@pytest.mark.parametrize("error", [20.0, 0.6, np.nan, np.inf])
def test_an_engine_that_is_wrong_at_one_batch_size_fails_parity(bundle, expected, size, error):
    engine = WrongWhenAlone(compile_engine(bundle.graph, "onnxruntime"), size, error)
    with pytest.raises(ParityError):
        check_parity(measure_parity(engine, expected), ParityLimits())


def test_labels_must_agree_at_every_batch_size(bundle, expected):
    row = measure_parity(WrongWhenAlone(compile_engine(bundle.graph, "onnxruntime"), 1, 20.0), expected)
    with pytest.raises(ParityError, match="of labels equal"):
        check_parity(row, ParityLimits(half_max_abs_diff=1e9))


def test_an_engine_for_other_weights_fails_parity(checkpoint, expected):
    torch.manual_seed(0)
    other = DualTokenViT(checkpoint.model.config).eval()
    row = measure_parity(compile_engine(onnx_graph(other), "onnxruntime"), expected)
    with pytest.raises(ParityError):
        check_parity(row, ParityLimits(fp32_max_abs_diff=1e9))


def test_the_golden_rows_are_pytorchs(bundle, checkpoint):
    golden = bundle.golden
    held_out = checkpoint.held_out.pixels
    assert not any((held_out == picture).all((1, 2, 3)).any() for picture in golden.pixels)  # nobody's image
    assert golden.betas.tolist() == [0, 0.5, 1]
    backbone = Backbone(checkpoint.model)
    for beta, logits in zip(golden.betas, golden.logits, strict=True):
        token = checkpoint.model.soup(float(beta)).expand(len(golden.pixels), -1)
        # Another batch size sums in another order.
        np.testing.assert_allclose(backbone(torch.from_numpy(golden.pixels), token).numpy(), logits, atol=1e-5)


def test_a_failed_export_writes_nothing(checkpoint, tmp_path):
    limits = ParityLimits(fp32_max_abs_diff=1e-12)
    with pytest.raises(ParityError):
        export_bundle(checkpoint, tmp_path / "bundle", request=EngineRequest(precisions=["fp32"]), limits=limits)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_was_asked_for_must_be_proven(checkpoint, tmp_path):
    with pytest.raises(ExportError, match="bf16"):
        export_bundle(
            checkpoint, tmp_path / "bundle", request=EngineRequest(engines=["onnxruntime"], precisions=["bf16"])
        )


def test_the_command_exports_what_is_asked_and_overwrites_when_told(digits_run, tmp_path, capsys):
    out = tmp_path / "bundle"
    arguments = [
        "export",
        str(digits_run),
        "--out",
        str(out),
        "--engine",
        "onnxruntime",
        "--precision",
        "fp32",
        "--json",
    ]
    assert main([*arguments, "--name", "mine", "--default-beta", "robust"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["name"], manifest["default_beta"]) == ("mine", 1.0)
    assert [(row["engine"], row["precision"]) for row in manifest["parity"]] == [("onnxruntime", "fp32")]
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert load_bundle(out).manifest.name == "digits"


def test_the_card_says_what_was_measured_and_what_is_not_defended(bundle):
    card = (bundle.path / "README.md").read_text()
    assert "PGD-10 under l∞" in card
    assert "no single image has a guarantee" in card
    for row in bundle.manifest.accuracy:
        assert f"| {row.beta:g} | {100 * row.clean.value:.1f}" in card
    for word in ("secure", "immune", "certified"):
        assert word not in card.lower()
