"""The specification of a job: which option wins, what it refuses, and the fingerprint that decides about a resume."""

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from serve.errors import InputError, OutputError
from serve.jobs.job_spec import (
    BATCH_ROWS,
    CPU_BATCH_ROWS,
    LATER_FIELDS,
    SHARD_ROWS,
    InputSummary,
    JobOptions,
    JobSpec,
    build_spec,
    check_betas,
    check_unchanged,
)
from tests.serve.jobs.conftest import BUNDLE
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import UNCALIBRATED, CalibrationRow, Temperatures
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve
from tureen.errors import SingleTokenError, UnknownTokenError
from tureen.preprocess import ImageLimits
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import Mix, Strength

INPUTS = InputSummary(sha256="0" * 64, images=100, has_own_betas=False)


@dataclass
class NamedEngine:
    name: str = "onnxruntime"
    precision: str = "fp32"
    version: str = "1"


@pytest.fixture(scope="module")
def manifest():
    curve = StrengthCurve(betas=[0, 0.6, 1], strengths=[0, 0.5, 1], n=9)
    return load_bundle(BUNDLE).manifest.model_copy(update={"strength": curve, "calibration": []})


def calibrated(manifest, temperature):
    row = CalibrationRow(beta=0, temperature=temperature, n_fitted=50, n=50, error_before=0.1, error=0.02)
    return manifest.model_copy(update={"calibration": [row]})


def spec_of(manifest, inputs=INPUTS, earlier=None, engine="onnxruntime", **options):
    return build_spec(JobOptions(**options), inputs, manifest, NamedEngine(engine), ImageLimits(), earlier)


def test_without_options_a_job_has_the_defaults(manifest):
    spec = spec_of(manifest)
    assert (spec.betas, spec.top_k, spec.format) == ((manifest.default_beta,), DEFAULT_TOP_K, "parquet")
    assert (spec.shard_images, spec.batch_rows) == (SHARD_ROWS, CPU_BATCH_ROWS)
    assert spec_of(manifest, engine="tensorrt").batch_rows == BATCH_ROWS
    assert spec_of(manifest, default_beta=0.25).betas == (0.25,)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"betas": (0.0, 1.0)}, "betas", (0.0, 1.0)),
        ({"betas": (0.5,), "default_beta": 0.25}, "betas", (0.5,)),
        ({"betas": (Strength(0.5),), "default_beta": 0.25}, "betas", (0.6,)),
        ({"top_k": 3}, "top_k", 3),
        ({"top_k": 1000}, "top_k", 10),  # the classes of CIFAR-10
        ({"format": "csv"}, "format", "csv"),
        ({"batch_rows": 7}, "batch_rows", 7),
        ({"shard_rows": 40}, "shard_images", 40),
        ({"shard_rows": 40, "betas": (0.0, 0.5, 1.0)}, "shard_images", 13),
        ({"shard_rows": 1, "betas": (0.0, 1.0)}, "shard_images", 1),
    ],
)
def test_an_option_wins_over_the_earlier_run_and_the_default(manifest, options, field, value):
    earlier = spec_of(manifest, betas=(0.75,), top_k=2, format="jsonl", shard_rows=9, batch_rows=3)
    assert getattr(spec_of(manifest, **options), field) == value
    assert getattr(spec_of(manifest, earlier=earlier, **options), field) == value


def test_a_resumed_job_without_options_has_the_specification_of_its_first_run(manifest):
    earlier = spec_of(manifest, betas=(0.0, 0.75), top_k=2, format="jsonl", shard_rows=9, batch_rows=3)
    resumed = spec_of(manifest, earlier=earlier)
    assert resumed == earlier
    assert resumed.fingerprint == earlier.fingerprint
    check_unchanged(earlier, resumed)


def test_a_difference_is_refused_by_name_with_both_values(manifest):
    earlier = spec_of(manifest, betas=(0.5,))
    changed = spec_of(manifest, replace(INPUTS, images=101), betas=(0.75,))
    assert changed.fingerprint != earlier.fingerprint
    with pytest.raises(OutputError, match=r"images was 100, is 101; betas was \[0\.5\], is \[0\.75\]"):
        check_unchanged(earlier, changed)


def test_the_last_shard_has_the_remaining_images(manifest):
    assert [spec_of(manifest, shard_rows=rows).shards for rows in (33, 50, 100, 200)] == [4, 2, 1, 1]


def test_betas_of_options_and_manifest_are_checked(manifest):
    check_betas(JobOptions(betas=(0.0, 1.0)))
    with pytest.raises(InputError, match="given twice"):
        check_betas(JobOptions(betas=(0.5, 0.5)))
    own = replace(INPUTS, has_own_betas=True)
    assert spec_of(manifest, own, betas=(0.5,)).has_own_betas
    with pytest.raises(InputError, match="its own β"):
        spec_of(manifest, own, betas=(0.0, 1.0))


FOG = Mix((("fog", 0.75), ("robust", 0.25)))
TOKENS = {name: np.full(192, value, np.float32) for name, value in (("clean", 0), ("robust", 4), ("fog", 8))}


def test_a_mix_is_part_of_the_specification_with_the_digest_of_its_vector(manifest):
    spec = spec_of(calibrated(manifest, 2), mix=FOG, tokens=TOKENS)
    assert (spec.mix, spec.betas, spec.token_mix) == ("fog:0.75,robust:0.25", (0.25,), FOG)
    assert (spec.temperatures, spec.strength) == (UNCALIBRATED, None)
    assert spec.mix_sha256 == hashlib.sha256(np.full(192, 7, np.float32).tobytes()).hexdigest()
    assert spec_of(manifest, earlier=spec, tokens=TOKENS) == spec
    other = spec_of(manifest, earlier=spec, tokens={**TOKENS, "fog": np.zeros(192, np.float32)})
    with pytest.raises(OutputError, match="mix_sha256 was"):
        check_unchanged(spec, other)
    with pytest.raises(OutputError, match="mix was"):
        check_unchanged(spec, spec_of(manifest, earlier=spec, betas=(0.25,)))


def test_a_mix_needs_its_tokens_and_an_input_without_beta(manifest):
    with pytest.raises(UnknownTokenError, match="no token 'fog'; the tokens are clean, robust"):
        spec_of(manifest, mix=FOG, tokens={name: TOKENS[name] for name in ("clean", "robust")})
    with pytest.raises(InputError, match="leave --mix out"):
        spec_of(manifest, replace(INPUTS, has_own_betas=True), mix=FOG, tokens=TOKENS)
    with pytest.raises(InputError, match="give another directory"):
        _ = spec_of(manifest).model_copy(update={"mix": "clean:1"}).token_mix


def test_a_model_with_one_token_takes_a_mix(manifest):
    single = manifest.model_copy(update={"has_two_tokens": False})
    assert spec_of(single, mix=FOG, tokens=TOKENS).betas == (None,)


def test_a_model_with_one_token_has_no_beta(manifest):
    single = manifest.model_copy(update={"has_two_tokens": False})
    assert spec_of(single).betas == (None,)
    with pytest.raises(SingleTokenError):
        spec_of(single, betas=(0.5,))
    with pytest.raises(SingleTokenError):
        spec_of(single, replace(INPUTS, has_own_betas=True))


def test_a_job_keeps_the_temperatures_of_its_first_run(manifest):
    first = spec_of(calibrated(manifest, 2))
    assert first.temperatures == Temperatures(betas=(0,), values=(2,))
    assert spec_of(calibrated(manifest, 3), earlier=first) == first
    assert spec_of(calibrated(manifest, 3)).fingerprint != first.fingerprint
    uncalibrated = spec_of(calibrated(manifest, 2), calibrated=False)
    assert uncalibrated.temperatures == UNCALIBRATED
    assert spec_of(calibrated(manifest, 2), earlier=uncalibrated) == uncalibrated
    with pytest.raises(OutputError, match="temperatures was"):
        check_unchanged(first, spec_of(calibrated(manifest, 2), earlier=first, calibrated=False))


def test_a_job_of_an_earlier_version_keeps_its_fingerprint(manifest):
    spec = spec_of(manifest).model_copy(update={"strength": None})
    fields = {name: value for name, value in spec.model_dump().items() if name not in LATER_FIELDS}
    assert spec.fingerprint == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert JobSpec.model_validate_json(json.dumps(fields)) == spec
    assert spec_of(calibrated(manifest, 2), earlier=spec) == spec


def test_a_job_keeps_the_strength_curve_of_its_first_run(manifest):
    first = spec_of(manifest)
    again = manifest.model_copy(update={"strength": UNMEASURED_STRENGTH})
    assert first.strength == manifest.strength
    assert spec_of(again, earlier=first) == first
    assert spec_of(again).fingerprint != first.fingerprint
