"""The exported digits, and the logits of PyTorch for them."""

import pytest

from export.reference import compute_reference
from tureen.bundle.bundle import load_bundle


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.test.pixels)
