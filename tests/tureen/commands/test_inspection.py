import tureen
from tureen.bundle.bundle import GOLDEN
from tureen.commands.inspection import inspect_bundle


def test_of_a_valid_bundle_every_file_is_verified_and_an_engine_runs(bundle_path):
    inspection = inspect_bundle(bundle_path)
    assert inspection.error is None
    assert {file.state for file in inspection.files} == {"verified"}
    assert next(engine.can_run for engine in inspection.engines if engine.engine == "onnxruntime")
    assert all(engine.largest_difference is None for engine in inspection.engines)  # none was opened


def test_of_a_bundle_that_cannot_be_used_no_engine_is_named(own_bundle):
    (own_bundle / GOLDEN).unlink()
    inspection = inspect_bundle(own_bundle)
    assert f"{GOLDEN} is missing" in inspection.error
    assert (inspection.engines, inspection.auto) == ([], None)
    assert inspection.manifest.name == "digits"


def test_the_last_choice_of_auto_is_named_with_the_reason(bundle_path, monkeypatch, tmp_path):
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path))  # other tests leave what they measured in the common one
    tureen.load(bundle_path).close()
    auto = inspect_bundle(bundle_path).auto
    assert auto.engine in ("onnxruntime fp32", "openvino fp32", "openvino bf16")
    assert auto.why.startswith("measured ")
    assert "by a race at batch 8: " in auto.why
