import json
from pathlib import Path

import pytest

from export.card import model_card
from training.evaluation.strengths import BETAS
from tureen.bundle.bundle import MODEL_CARD, load_bundle
from tureen.bundle.examples import EXAMPLES, example_names
from tureen.bundle.manifest import (
    NOTE,
    Accuracy,
    AccuracyRow,
    AttackCheck,
    CalibrationRow,
    Evaluation,
    Manifest,
    ShiftRow,
    TransferMatrix,
)
from tureen.bundle.strength_curve import StrengthCurve
from tureen.preprocess import PreprocessSpec

DOCS = Path(__file__).parents[2] / "docs"
HEADINGS = {
    "checks": "### Checks of the attack",
    "matrix": "### Attacks on another β",
    "epsilon_curve": "### Other radii",
    "shifts": "### Corruptions and shifts",
    "ensembles": "### Comparison with ensembles",
}


def row(beta, robust):
    share, rest = Accuracy(value=0.9, low=0.8, high=0.95), Accuracy(value=robust, low=0.0, high=1.0)
    return AccuracyRow(beta=beta, n=100, clean=share, robust=rest, attack="PGD-40", epsilon_255=8)


EVERYTHING = Evaluation(
    checks=[AttackCheck(name="it holds", beta=0, n=9, has_passed=False, figures={"PGD-4": 0.125}, sentence="Beware.")],
    matrix=TransferMatrix(
        betas=[0, 1],
        n=100,
        attack="PGD-40",
        epsilon_255=8,
        robust=[[0.2, 0.6], [0.3, 0.5]],
        joint_attack="PGD-40",
        joint=[0.25, 0.55],
        worst=[Accuracy(value=0.19, low=0.1, high=0.3), Accuracy(value=0.49, low=0.4, high=0.6)],
        suspects=[],
    ),
    epsilon_curve=[row(0, 0.4321)],
    shifts=[ShiftRow(name="fog", family="weather", beta=0, n=100, accuracy={3: 0.765})],
    ensembles=[row(0.5, 0.1234)],
)


@pytest.fixture
def manifest():
    return Manifest(
        name="digits",
        version="1",
        width=8,
        labels=["0", "1"],
        preprocess=PreprocessSpec(image_size=8),
        default_beta=0,
        opset=20,
        files={},
        parity=[],
        accuracy=[row(0, 0.2), row(1, 0.5)],
        provenance={"seed": 0},
    )


def test_a_card_has_no_section_without_a_measurement(manifest):
    card = model_card(manifest)
    assert "###" not in card
    assert "larger radii or" not in card
    assert (
        "not measured under other norms, poisoned training data, larger radii, rotations or other distribution shifts"
        in card
    )


def test_the_note_stands_before_the_engines_and_not_in_the_provenance(manifest):
    note = "## Data\n\nTen drawings."
    card = model_card(manifest.model_copy(update={"provenance": {"seed": 0, NOTE: note}}))
    assert f"may choose 0.\n\n{note}\n\n## Engines\n" in card
    assert card.endswith("## Provenance\n\n- seed: 0\n")
    assert card.replace(f"{note}\n\n", "") == model_card(manifest)


@pytest.mark.parametrize("name", example_names())
def test_the_card_of_an_example_is_that_of_its_manifest(name):
    assert (EXAMPLES / name / MODEL_CARD).read_text() == model_card(load_bundle(EXAMPLES / name).manifest)


def test_the_card_of_the_signs_names_the_data_and_the_figures_at_half_the_radius():
    card = (EXAMPLES / "signs" / MODEL_CARD).read_text()
    page = (DOCS / "signs.md").read_text()
    assert (DOCS / "signs-card.md").read_text() in card
    for fact in (
        "## Data",
        "Stallkamp",
        "licence",
        "37,680",
        "12,630",
        "32 × 32",
        "tracks",
        "## Accuracy at ε = 4/255",
    ):
        assert fact in card
    rows = [line for line in card.splitlines() if line in page and line.count("|") == 6]
    assert len(rows) == 4  # the heading, its line, and both modes


def test_a_card_says_what_the_intervals_leave_out_and_that_a_random_beta_is_no_defence(manifest):
    limits = " ".join(model_card(manifest).partition("## Limits of the robust mode")[2].split())
    assert "The intervals cover the choice of images, not the weakness of the attack or the seed" in limits
    assert "A random or secret β is no defence" in limits
    assert "If clients choose β, an attacker chooses it too" in limits


@pytest.mark.parametrize("field", HEADINGS)
def test_each_thing_measured_has_its_section(manifest, field):
    evaluation = Evaluation(**{field: getattr(EVERYTHING, field)})
    card = model_card(manifest.model_copy(update={"evaluation": evaluation}))
    assert [heading for heading in HEADINGS.values() if heading in card] == [HEADINGS[field]]


def test_the_measurements_of_accuracy_stand_in_its_section(manifest):
    card = model_card(manifest.model_copy(update={"evaluation": EVERYTHING}))
    accuracy = card[card.index("## Accuracy") : card.index("## Strength")]
    assert all(heading in accuracy for heading in HEADINGS.values())


def test_the_sections_hold_the_figures(manifest):
    card = model_card(manifest.model_copy(update={"evaluation": EVERYTHING}))
    for figure in ("FAILED", "Beware.", "12.5 %", "19.0", "43.2", "76.5", "12.3", "2.0 ×"):
        assert figure in card
    assert "not measured under other norms, poisoned training data.\n\nA random" in card


def test_a_manifest_keeps_optional_measurements(manifest):
    complete = manifest.model_copy(update={"evaluation": EVERYTHING})
    assert Manifest.model_validate_json(complete.model_dump_json()) == complete
    values = json.loads(manifest.model_dump_json())
    del values["evaluation"]
    assert Manifest.model_validate(values).evaluation == Evaluation()


def test_the_card_states_the_measurements_and_the_limits_of_the_defence(bundle):
    card = (bundle.path / "README.md").read_text()
    assert "APGD-5 (CE, targeted DLR),\nl∞ ε = 38/255" in card
    assert "no single image has a guarantee" in card
    for row in bundle.manifest.accuracy:
        assert f"| {row.beta:g} | {100 * row.clean.value:.1f}" in card
    for word in ("secure", "immune", "certified"):
        assert word not in card.lower()


def test_the_card_has_the_beta_of_five_strengths(manifest):
    assert "Not measured: the strength of a request is its β." in model_card(manifest)
    curve = StrengthCurve(betas=[0, 0.5, 0.75, 1], strengths=[0, 0.2, 0.8, 1], n=77)
    card = model_card(manifest.model_copy(update={"strength": curve}))
    section = card[card.index("## Strength") : card.index("## Limits")]
    assert "Measured on 77 images" in section
    rows = ("| 0 | 0.00 |", "| 0.25 | 0.52 |", "| 0.5 | 0.62 |", "| 0.75 | 0.73 |", "| 1 | 1.00 |")
    assert all(row in section for row in rows)


def test_the_card_has_the_calibration_error_at_each_beta(manifest):
    assert "## Calibration" not in model_card(manifest)
    row = CalibrationRow(beta=1, temperature=1.5, n_fitted=31, n=32, error_before=0.131, error=0.02)
    card = model_card(manifest.model_copy(update={"calibration": [row]}))
    assert "on 32 images, without and with a temperature" in card
    assert "31 other images fitted the temperatures" in card
    assert "| 1 | 1.50 | 0.131 | 0.020 |" in card


def test_an_exported_bundle_has_its_curve_and_its_temperatures(bundle):
    manifest = bundle.manifest
    assert manifest.strength.n == 135
    assert len(manifest.strength.betas) > 2
    assert [row.beta for row in manifest.calibration] == list(BETAS)
    assert {(row.n_fitted, row.n) for row in manifest.calibration} == {(135, 450)}
    card = (bundle.path / "README.md").read_text()
    assert f"| 0.5 | {manifest.strength.beta_at(0.5):.2f} |" in card
    assert f"| {manifest.calibration[-1].error:.3f} |" in card
