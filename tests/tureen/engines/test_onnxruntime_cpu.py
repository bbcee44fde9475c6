import threading

import numpy as np
import onnxruntime
import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine
from tureen.engines.base import EngineOptions
from tureen.engines.onnxruntime_cpu import PACKAGES, open_session, require_one_package, session_options
from tureen.errors import EngineError
from tureen.tokens import mix_rows


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


def test_two_packages_that_overwrite_each_other_are_refused_with_the_repair():
    require_one_package(["onnxruntime"])
    require_one_package([])
    with pytest.raises(EngineError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        require_one_package(["onnxruntime-gpu", "onnxruntime"])
    assert {"onnxruntime", "onnxruntime-gpu"} <= set(PACKAGES)


class FallingBack:
    """An onnxruntime that lists a provider it cannot load, and falls back without a word, as the real one does."""

    def __init__(self, listed):
        self.listed = listed

    def get_available_providers(self):
        return self.listed

    def InferenceSession(self, graph, settings, providers):  # noqa: N802 - its name
        return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def test_a_provider_that_falls_back_to_the_cpu_is_an_error(bundle):
    settings = session_options(onnxruntime, 1)
    with pytest.raises(EngineError, match="cannot use CUDAExecutionProvider and fell back to CPUExecutionProvider"):
        open_session(FallingBack(["CUDAExecutionProvider"]), bundle.graph, settings, "CUDAExecutionProvider", {})


def test_streams_run_in_parallel_with_equal_results(bundle):
    engine = compile_engine(bundle.graph, "onnxruntime", "fp32", EngineOptions(threads=2, streams=2))
    pixels = np.repeat(bundle.golden.pixels, 4, axis=0)
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, np.linspace(0, 1, len(pixels)))
    expected, answers = engine.run(pixels, tokens), [None] * 8

    def ask(index):
        answers[index] = engine.run(pixels, tokens)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)
    engine.close()
