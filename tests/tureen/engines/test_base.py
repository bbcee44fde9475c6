import numpy as np
import pytest

from tureen.engines import compile_engine
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


def test_an_engine_reproduces_the_golden_rows(engine, bundle):
    assert check_golden_rows(engine, bundle) <= golden_tolerance(bundle.parity(engine.name, engine.precision))


@pytest.mark.parametrize("error", [0.5, np.nan, np.inf])
def test_an_engine_with_wrong_results_is_refused(bundle, error):
    engine = Broken(compile_engine(bundle.graph, "onnxruntime"), error)
    with pytest.raises(EngineError, match="does not reproduce the golden rows"):
        check_golden_rows(engine, bundle)
