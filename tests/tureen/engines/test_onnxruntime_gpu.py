"""ONNX Runtime's GPU engines, as far as a machine without a GPU can test them."""

import importlib.metadata

import numpy as np
import onnxruntime
import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine
from tureen.engines.base import EngineOptions
from tureen.engines.onnxruntime_cpu import open_session, session_options
from tureen.engines.onnxruntime_gpu import BoundSession, require_tensorrt_10, tensorrt_options
from tureen.errors import EngineError
from tureen.tokens import mix_rows


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_the_cpu_package_has_no_gpu_engine_and_names_the_package_to_install(bundle, engine):
    with pytest.raises(EngineError, match=r"extra \[gpu\]|no NVIDIA GPU"):
        compile_engine(bundle.graph, engine)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 11, 25])
def test_bound_buffers_give_the_logits_of_an_unbound_session(bundle, rows):
    """On the CPU: the same code with another device's name, and without CUDA graphs."""
    settings = session_options(onnxruntime, 1)
    session = open_session(onnxruntime, bundle.graph, settings, "CPUExecutionProvider", {})
    bound = BoundSession(onnxruntime, session, device="cpu", max_batch=8, has_graphs=False)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, rng.random(rows))
    plain = session.run(["logits"], {"pixels": pixels, "cls_token": tokens})[0]
    for _ in range(2):  # the second time in buffers that hold the first one's rows
        np.testing.assert_allclose(bound.run(pixels, tokens), plain, atol=1e-5)


def version_of(**versions):
    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    return version


def test_the_tensorrt_provider_wants_the_tensorrt_it_is_linked_with():
    require_tensorrt_10(version_of(tensorrt="10.16.1.11"))
    require_tensorrt_10(version_of())  # one that pip does not know of
    with pytest.raises(EngineError, match=r"needs TensorRT 10, installed is tensorrt 11\.4"):
        require_tensorrt_10(version_of(tensorrt="11.4.0.106"))


def test_the_tensorrt_provider_has_one_profile_and_separate_caches(bundle, tmp_path):
    options = EngineOptions(threads=1, max_batch=16)
    chosen = tensorrt_options(bundle.graph, options, version="1.31.1", device="NVIDIA H100 80GB HBM3")
    width = len(bundle.clean_token)
    assert chosen["trt_profile_min_shapes"] == f"pixels:1x8x8x3,cls_token:1x{width}"
    assert (
        chosen["trt_profile_opt_shapes"] == chosen["trt_profile_max_shapes"] == f"pixels:16x8x8x3,cls_token:16x{width}"
    )
    assert not any("cache" in key for key in chosen)
    kept = EngineOptions(threads=1, cache=tmp_path)
    directories = {
        tensorrt_options(bundle.graph, kept, version=version, device=device)["trt_engine_cache_path"]
        for version in ("1.31.1", "1.32.0")
        for device in ("NVIDIA H100 80GB HBM3", "NVIDIA L4")
    }
    assert len(directories) == 4  # what was built for another is never found
    assert all(name.startswith(str(tmp_path)) for name in directories)
