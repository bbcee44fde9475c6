import dataclasses
import json

import numpy as np
import pytest

from tureen.bundle.bundle import load_bundle
from tureen.engines import compile_engine, open_engine
from tureen.errors import EngineError
from tureen.tokens import mix_rows

BETAS_64 = np.linspace(0, 1, 64)


def test_a_batch_of_64_betas_equals_64_batches_of_one(engine, bundle, checkpoint):
    pixels = checkpoint.test.pixels[:64]
    tokens = mix_rows(bundle.clean_token, bundle.robust_token, BETAS_64)
    together = engine.run(pixels, tokens)
    alone = np.concatenate([engine.run(pixels[i : i + 1], tokens[i : i + 1]) for i in range(64)])
    if engine.precision == "fp32":
        # Sums of float32 in another order: the last bits of logits near 10.
        np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together.argmax(1), alone.argmax(1))


def test_neighbours_of_another_beta_change_nothing(engine, bundle, checkpoint):
    pixels = checkpoint.test.pixels[:8]
    mixed = engine.run(pixels, mix_rows(bundle.clean_token, bundle.robust_token, [0, 1] * 4))
    clean = engine.run(pixels, mix_rows(bundle.clean_token, bundle.robust_token, [0] * 8))
    robust = engine.run(pixels, mix_rows(bundle.clean_token, bundle.robust_token, [1] * 8))
    np.testing.assert_allclose(mixed[::2], clean[::2], atol=1e-5)
    np.testing.assert_allclose(mixed[1::2], robust[1::2], atol=1e-5)
    assert np.abs(clean - robust).max() > 10_000 * 1e-5  # the token does something


def test_auto_opens_an_engine_that_the_bundle_lists(bundle):
    engine = open_engine(bundle)
    assert bundle.parity(engine.name, engine.precision) is not None
    engine.close()


def test_auto_leaves_out_engines_that_the_bundle_does_not_list(bundle):
    rows = [row for row in bundle.manifest.parity if row.engine == "onnxruntime"]
    manifest = bundle.manifest.model_copy(update={"parity": rows})
    engine = open_engine(dataclasses.replace(bundle, manifest=manifest))
    assert engine.name == "onnxruntime"
    engine.close()


def test_an_engine_without_parity_is_refused(bundle):
    manifest = bundle.manifest.model_copy(update={"parity": []})
    with pytest.raises(EngineError, match="lists no such engine"):
        open_engine(dataclasses.replace(bundle, manifest=manifest), "onnxruntime")


def test_an_engine_whose_golden_rows_are_off_is_left_out_with_the_reason(bundle):
    golden = dataclasses.replace(bundle.golden, logits=bundle.golden.logits + 1)
    with pytest.raises(EngineError, match=r"onnxruntime fp32.*does not reproduce"):
        open_engine(dataclasses.replace(bundle, golden=golden))


@pytest.mark.parametrize("name", ["tensorflow", ""])
def test_an_unknown_engine_is_refused_with_the_choice(bundle, name):
    with pytest.raises(EngineError, match="choose auto, onnxruntime, openvino"):
        open_engine(bundle, name)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_that_is_none_is_refused(name):
    with pytest.raises(EngineError, match="cannot load this backbone"):
        compile_engine(b"not a graph", name)


def test_onnxruntime_has_no_bf16(bundle):
    with pytest.raises(EngineError, match="onnxruntime has no bf16: choose fp32, int8"):
        compile_engine(bundle.graph, "onnxruntime", "bf16")


def test_a_graph_does_not_pass_for_a_plan(own_bundle, put_file):
    """Plans are not read as ONNX; under a plan's name a graph could refer to any file of the machine."""
    name, graph = "engines/onnxruntime-fp32.plan", (own_bundle / "backbone.onnx").read_bytes()
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    record = {
        "engine": "onnxruntime", "precision": "fp32", "graph_sha256": manifest["files"]["backbone.onnx"]["sha256"],
        "runtime_version": "1", "device": "", "compute_capabilities": ["9.0"], "batch": [1, 8, 32],
    }  # fmt: skip
    rows = [{**row, "artefact": name} for row in manifest["parity"] if row["engine"] == "onnxruntime"]
    put_file(own_bundle, name, graph, plans={name: record}, parity=rows)
    with pytest.raises(EngineError, match="onnxruntime runs no compiled plan"):
        open_engine(load_bundle(own_bundle))
