"""The digits bundle, and each engine of it that this machine can run."""

import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module", params=["onnxruntime fp32", "openvino fp32", "openvino bf16"])
def engine(request, bundle):
    name, precision = request.param.split()
    if bundle.parity(name, precision) is None:
        pytest.skip(f"this machine has no {request.param}")
    opened = open_engine(bundle, name, precision)
    yield opened
    opened.close()
