import numpy as np
import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines.base import Artefact, EngineOptions
from tureen.engines.openvino_cpu import OpenVinoEngine
from tureen.errors import EngineError
from tureen.tokens import mix_rows


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


def test_fp16_is_refused_with_the_precisions_to_use(bundle):
    with pytest.raises(EngineError, match="use fp32, bf16 or int8"):
        OpenVinoEngine(Artefact(bundle.graph), "fp16", EngineOptions(threads=1))


@pytest.mark.parametrize("streams", [1, 2])
def test_the_number_of_streams_does_not_change_the_logits(bundle, streams):
    pixels = np.repeat(bundle.golden.pixels[:1], 5, axis=0)
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, np.linspace(0, 1, 5))
    engine = OpenVinoEngine(Artefact(bundle.graph), "fp32", EngineOptions(threads=2, streams=streams))
    logits = engine.run(pixels, tokens)
    assert (logits.shape, logits.dtype) == ((5, len(bundle.manifest.labels)), np.float32)
    for index in range(5):
        row = slice(index, index + 1)
        np.testing.assert_allclose(
            engine.run(pixels[row], tokens[row]), logits[row], atol=1e-4
        )  # sums in another order
    engine.close()
