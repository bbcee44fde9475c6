import json
import re
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from tureen.bundle.bundle import MANIFEST, load_bundle, read_manifest
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.manifest import UNCALIBRATED, CalibrationRow
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve
from tureen.errors import BundleError, SingleTokenError
from tureen.tokens import Strength

CURVE = StrengthCurve(betas=[0, 0.5, 0.75, 1], strengths=[0, 0.2, 0.8, 1], n=9)


@pytest.fixture
def example(tmp_path):
    """A directory with the manifest of the example bundle, which a test may change."""
    return Path(shutil.copy(EXAMPLES / "cifar10" / MANIFEST, tmp_path)).parent


def edit_manifest(path, **changes):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_a_newer_schema_requires_an_upgrade(own_bundle):
    edit_manifest(own_bundle, schema_version=4, something_new=True)
    with pytest.raises(BundleError, match=r"schema version 4.*upgrade Tureen"):
        read_manifest(own_bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "x"}', "\x00"])
def test_an_invalid_manifest_is_refused(own_bundle, text):
    (own_bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not a Tureen manifest"):
        load_bundle(own_bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_file_outside_the_bundle_cannot_be_named(own_bundle, name):
    edit_manifest(own_bundle, files={name: {"sha256": "0" * 64, "size": 0}})
    with pytest.raises(BundleError, match="files"):
        load_bundle(own_bundle)


@pytest.mark.parametrize(
    "change", [{"accuracy": []}, {"default_beta": 1.5}, {"labels": ["one"]}, {"width": 0}, {"surprise": 1}]
)
def test_a_wrong_value_is_named(own_bundle, change):
    edit_manifest(own_bundle, **change)
    with pytest.raises(BundleError, match=next(iter(change))):
        load_bundle(own_bundle)


def test_a_label_that_two_outputs_share_is_named(own_bundle):
    edit_manifest(own_bundle, labels=["one", "two", "two", *map(str, range(7))])
    with pytest.raises(BundleError, match="labels has 'two' twice; give each output a label that no other has"):
        read_manifest(own_bundle)


def test_only_a_single_token_model_may_lack_accuracy_or_a_second_token(own_bundle):
    rows = json.loads((own_bundle / MANIFEST).read_text())["accuracy"]
    edit_manifest(own_bundle, is_cotrained=False, has_two_tokens=False, accuracy=[])
    assert read_manifest(own_bundle).accuracy == []
    edit_manifest(own_bundle, is_cotrained=True)
    with pytest.raises(BundleError, match="accuracy has no row"):
        read_manifest(own_bundle)
    edit_manifest(own_bundle, accuracy=rows)
    with pytest.raises(BundleError, match="has_two_tokens is false"):
        read_manifest(own_bundle)


@pytest.mark.parametrize("version", [1, 2])
def test_a_manifest_of_an_earlier_schema_has_a_strength_equal_to_beta_and_no_temperature(own_bundle, version):
    earlier = json.loads((own_bundle / MANIFEST).read_text())
    del earlier["strength"], earlier["calibration"]
    (own_bundle / MANIFEST).write_text(json.dumps({**earlier, "schema_version": version}))
    manifest = load_bundle(own_bundle).manifest
    assert (manifest.strength, manifest.temperatures) == (UNMEASURED_STRENGTH, UNCALIBRATED)
    assert manifest.beta_of(Strength(0.3)) == 0.3
    assert manifest.strength.strength_at(0.3) == 0.3


def test_a_strength_becomes_a_beta_where_the_model_has_two_tokens(own_bundle):
    manifest = read_manifest(own_bundle).model_copy(update={"strength": CURVE})
    assert manifest.beta_of(0.5) == 0.5
    assert [manifest.beta_of(Strength(value)) for value in (0, 0.1, 0.5, 1)] == [0, 0.25, 0.625, 1]
    with pytest.raises(SingleTokenError, match="leave strength out"):
        manifest.model_copy(update={"has_two_tokens": False}).beta_of(Strength(0.5))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"calibration": [{"temperature": True}]}, "calibration.0.temperature"),
        ({"calibration": [{"temperature": "0.64"}]}, "calibration.0.temperature"),
        ({"calibration": [{"n": "9"}]}, "calibration.0.n"),
        ({"calibration": [{"n": True}]}, "calibration.0.n"),
        ({"accuracy": [{"epsilon_255": float("inf")}]}, "accuracy.0.epsilon_255"),
        ({"accuracy": [{"epsilon_255": "8"}]}, "accuracy.0.epsilon_255"),
        ({"accuracy": [{"beta": float("nan")}]}, "accuracy.0.beta"),
        ({"accuracy": [{"clean": {"value": True, "low": 0, "high": 1}}]}, "accuracy.0.clean.value"),
        ({"strength": {"betas": [False, True]}}, "strength.betas.0"),
        ({"default_beta": "0.5"}, "default_beta"),
    ],
)
def test_a_figure_that_is_not_a_finite_number_is_named(example, changes, where):
    manifest = read_manifest(example)
    row = CalibrationRow(beta=0, temperature=2, n_fitted=50, n=50, error_before=0.1, error=0.02)
    rows = {"calibration": [row.model_dump()], "accuracy": [row.model_dump() for row in manifest.accuracy]}
    edit_manifest(example, **rows)
    assert read_manifest(example).calibration == [row]
    for name, change in changes.items():
        if name in rows:
            rows[name][0] |= change[0]
        else:
            rows[name] = {**manifest.strength.model_dump(), **change} if name == "strength" else change
    edit_manifest(example, **rows)
    with pytest.raises(BundleError, match=rf"{re.escape(where)}: Input should be a (valid|finite)"):
        read_manifest(example)


def test_whole_numbers_arrays_and_numbers_as_keys_are_read(example):
    counts = {"beta": 0, "images": [1] * 10, "clean": [1] * 10, "robust": [0] * 10}
    shift = {"name": "fog", "family": "weather", "beta": 1, "n": 9, "accuracy": {"1": 1, "5": 0.5}}
    plan = {"engine": "tensorrt", "precision": "fp16", "graph_sha256": "0" * 64, "runtime_version": "10"}
    plan |= {"device": "", "compute_capabilities": ["9.0"], "batch": [1, 8, 32]}
    edit_manifest(example, evaluation={"classes": [counts], "shifts": [shift]}, plans={"engines/a.plan": plan})
    manifest = read_manifest(example)
    assert manifest.evaluation.shifts[0].accuracy == {1: 1.0, 5: 0.5}
    assert manifest.plans["engines/a.plan"].batch == (1, 8, 32)


def test_the_counts_by_class_have_a_number_for_each_label(own_bundle):
    manifest = read_manifest(own_bundle)
    assert [counts.beta for counts in manifest.evaluation.classes] == [0, 1]
    counts = manifest.evaluation.classes[0].model_dump()
    evaluation = manifest.evaluation.model_dump(mode="json")
    edit_manifest(own_bundle, evaluation={**evaluation, "classes": [{**counts, "robust": [1]}]})
    with pytest.raises(BundleError, match="does not have 10 classes at β = 0"):
        read_manifest(own_bundle)


def test_calibration_rows_ascend(own_bundle):
    row = {"beta": 0.5, "temperature": 1.2, "n_fitted": 50, "n": 50, "error_before": 0.1, "error": 0.02}
    edit_manifest(own_bundle, calibration=[row, {**row, "beta": 1}])
    assert [row.beta for row in read_manifest(own_bundle).calibration] == [0.5, 1]
    edit_manifest(own_bundle, calibration=[row, row])
    with pytest.raises(BundleError, match="calibration has rows whose β do not ascend"):
        read_manifest(own_bundle)


def test_the_temperature_is_linear_between_the_rows_and_constant_beyond_them(own_bundle):
    row = {"n_fitted": 50, "n": 50, "error_before": 0.1, "error": 0.02}
    edit_manifest(
        own_bundle, calibration=[{**row, "beta": 0.5, "temperature": 1}, {**row, "beta": 0.75, "temperature": 2}]
    )
    temperatures = read_manifest(own_bundle).temperatures
    assert temperatures.is_calibrated
    assert temperatures.at([None, 0, 0.5, 0.625, 0.75, 1]).tolist() == [1, 1, 1, 1.5, 2, 2]


def test_without_rows_every_temperature_is_1():
    assert not UNCALIBRATED.is_calibrated
    assert UNCALIBRATED.at([None, 0.3, 1]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0, -1, 1e-9, 1e9, float("nan")])
def test_a_temperature_that_no_fit_gives_is_refused(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        CalibrationRow(beta=0, temperature=temperature, n_fitted=1, n=1, error_before=0, error=0)
