"""The export of a checkpoint to a bundle, or to an error without any file."""

import dataclasses

import numpy as np
import pytest
import torch

from export.errors import ExportError, ParityError
from export.graph import Backbone
from export.parity import ParityLimits
from export.pipeline import export_bundle, synthetic_pictures
from export.proving import EngineRequest


def test_the_golden_rows_are_pytorchs(bundle, checkpoint):
    golden = bundle.golden
    held_out = checkpoint.test.pixels
    assert not any((held_out == picture).all((1, 2, 3)).any() for picture in golden.pixels)  # synthetic
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


def test_a_requested_engine_must_be_proven(checkpoint, tmp_path):
    with pytest.raises(ExportError, match="bf16"):
        export_bundle(
            checkpoint, tmp_path / "bundle", request=EngineRequest(engines=["onnxruntime"], precisions=["bf16"])
        )


def test_synthetic_pictures_are_the_same_in_every_call():
    pictures = synthetic_pictures(3, 16)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, synthetic_pictures(3, 16))
    assert not np.array_equal(pictures[0], pictures[1])


def test_a_checkpoint_without_accuracy_at_both_modes_is_not_exported(checkpoint, tmp_path):
    incomplete = dataclasses.replace(checkpoint, accuracy=checkpoint.accuracy[:1])
    with pytest.raises(ExportError, match="no measured accuracy at β = 0 and 1: train it again"):
        export_bundle(incomplete, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
