"""The exported digits, and the logits of PyTorch for them."""

import functools

import pytest

from export.reference import compute_reference
from tureen.bundle.bundle import load_bundle


@pytest.fixture(scope="session", autouse=True)
def _one_operator_registry():
    """Let the exporter of torch build its registry of operators once: that takes a quarter of an export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.test.pixels)
