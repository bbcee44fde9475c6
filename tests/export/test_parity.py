"""The limits of parity: logits in fp32, accuracy on clean and attacked images in lower precisions."""

import numpy as np
import pytest
import torch

from export.errors import ParityError
from export.graph import onnx_graph
from export.parity import BATCH_SIZES, ParityLimits, check_parity, measure_parity
from export.reference import BETAS
from training.models.vit import DualTokenViT
from tureen.bundle.manifest import ParityRow, ServedAccuracy
from tureen.engines import compile_engine


def row(precision, *, clean=0.0, transferred=0.0, beta=1.0, n=1000, agreement=1.0, difference=0.1):
    """Return a row whose accuracy at one β is that many points above fp32, and equal at the others."""
    accuracy = [
        ServedAccuracy(
            beta=b,
            n=n,
            clean=0.9 + (clean / 100 if b == beta else 0),
            clean_fp32=0.9,
            transferred=0.6 + (transferred / 100 if b == beta else 0),
            transferred_fp32=0.6,
            attack="PGD-10",
            epsilon_255=4,
        )
        for b in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return ParityRow(
        engine="openvino",
        precision=precision,
        engine_version="1",
        max_abs_diff=difference,
        mean_abs_diff=difference / 10,
        top1_agreement=agreement,
        n=n,
        betas=[at.beta for at in accuracy],
        batch_sizes=[1],
        accuracy=accuracy,
    )


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("what", ["clean", "transferred"])
@pytest.mark.parametrize(("precision", "points"), [("bf16", 0.2), ("fp16", 0.2), ("int8", 0.5)])
def test_accuracy_may_differ_by_so_many_points_at_every_beta(precision, points, what, sign, beta):
    check_parity(row(precision, beta=beta, **{what: sign * points}), ParityLimits())
    with pytest.raises(ParityError, match=f"accuracy at β = {beta:g}.*0.{round(10 * points) + 1}0 points apart"):
        check_parity(row(precision, beta=beta, **{what: sign * (points + 0.1)}), ParityLimits())


def test_more_accurate_under_transferred_attacks_is_no_merit():
    """Images that fool fp32 say nothing about a very different model, which they do not fool."""
    with pytest.raises(ParityError, match="transferred"):
        check_parity(row("int8", transferred=5), ParityLimits())


def test_one_image_never_decides_among_many():
    check_parity(row("bf16", clean=0.25, n=400), ParityLimits())
    with pytest.raises(ParityError, match="points apart"):
        check_parity(row("bf16", clean=0.5, n=400), ParityLimits())


@pytest.mark.parametrize(("precision", "needed"), [("bf16", 400), ("int8", 160)])
def test_one_of_too_few_images_exceeds_the_limit(precision, needed):
    check_parity(row(precision, n=needed), ParityLimits())
    with pytest.raises(ParityError, match=f"on {needed - 1} images, and {needed} are needed.*--images"):
        check_parity(row(precision, n=needed - 1), ParityLimits())


def test_the_limits_are_settings():
    check_parity(row("int8", transferred=2), ParityLimits(int8_accuracy_points=2))
    check_parity(row("bf16", clean=2), ParityLimits(half_accuracy_points=2))


def test_labels_must_agree_in_bf16_and_may_not_in_int8():
    with pytest.raises(ParityError, match="of labels equal"):
        check_parity(row("bf16", agreement=0.99), ParityLimits())
    check_parity(row("int8", agreement=0.99, difference=3), ParityLimits())


def test_int8_without_measured_accuracy_is_refused():
    with pytest.raises(ParityError, match="--data"):
        check_parity(row("int8").model_copy(update={"accuracy": []}), ParityLimits())
    check_parity(row("bf16").model_copy(update={"accuracy": []}), ParityLimits())


def test_fp32_is_held_to_its_logits():
    with pytest.raises(ParityError, match="largest logit difference"):
        check_parity(row("fp32", difference=2e-4), ParityLimits())
    check_parity(row("fp32", difference=1e-5), ParityLimits())


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
    """An engine that runs row 0 of every batch with the token of the last row, as if it mixed up rows."""

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
    """A bf16 engine with wrong logits at one batch size only."""

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
