import numpy as np
import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine, open_engine
from tureen.engines.base import check_golden_rows, golden_tolerance
from tureen.errors import EngineError


class Broken:
    """Another engine with an error added to its logits."""

    def __init__(self, engine, error):
        self.engine, self.error = engine, error
        self.name, self.precision, self.version = engine.name, engine.precision, engine.version

    def run(self, pixels, tokens):
        return self.engine.run(pixels, tokens) + np.float32(self.error)

    def close(self):
        self.engine.close()


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


def test_an_engine_reproduces_the_golden_rows(engine, bundle):
    assert check_golden_rows(engine, bundle) <= golden_tolerance(bundle.parity(engine.name, engine.precision))


@pytest.mark.parametrize("error", [0.5, np.nan, np.inf])
def test_an_engine_with_wrong_results_is_refused(bundle, error):
    engine = Broken(compile_engine(bundle.graph, "onnxruntime"), error)
    with pytest.raises(EngineError, match="does not reproduce the golden rows"):
        check_golden_rows(engine, bundle)
