"""The expected accuracy at a default β, from the measured rows of a bundle."""

import pytest

from serve.admin.expected_accuracy import expected_accuracy
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.manifest import AttackCheck, Evaluation


def test_expected_accuracy_is_measured_or_interpolated_between_measured_rows():
    manifest = load_bundle(EXAMPLES / "cifar10").manifest
    rows = sorted(manifest.accuracy, key=lambda row: row.beta)
    exact = expected_accuracy(manifest, rows[1].beta)
    assert (exact["clean"]["value"], exact["interpolated"]) == (rows[1].clean.value, False)
    assert (exact["norm"], exact["epsilon_255"]) == ("linf", rows[1].epsilon_255)
    middle = expected_accuracy(manifest, (rows[0].beta + rows[1].beta) / 2)
    assert middle["interpolated"]
    assert middle["robust"]["value"] == pytest.approx((rows[0].robust.value + rows[1].robust.value) / 2)


def test_the_checks_that_failed_beside_a_beta_are_named():
    manifest = load_bundle(EXAMPLES / "cifar10").manifest
    betas = sorted(row.beta for row in manifest.accuracy)
    checks = [
        AttackCheck(name=name, beta=beta, n=9, has_passed=has_passed, figures={}, sentence="Beware.")
        for name, beta, has_passed in (("two", betas[0], False), ("one", betas[1], False), ("three", betas[1], True))
    ]
    doubted = manifest.model_copy(update={"evaluation": Evaluation(checks=checks)})
    assert expected_accuracy(doubted, betas[1])["failed_checks"] == ["one"]
    assert expected_accuracy(doubted, (betas[0] + betas[1]) / 2)["failed_checks"] == ["two", "one"]
    assert expected_accuracy(doubted, betas[2])["failed_checks"] == []


@pytest.mark.parametrize("side", ["below", "above"])
def test_no_accuracy_is_expected_outside_the_measured_betas(side):
    manifest = load_bundle(EXAMPLES / "cifar10").manifest
    rows = sorted(manifest.accuracy, key=lambda row: row.beta)
    inner = manifest.model_copy(update={"accuracy": rows[1:-1]})
    assert len(rows) >= 3
    assert expected_accuracy(inner, rows[0].beta if side == "below" else rows[-1].beta) is None


def test_no_accuracy_is_expected_without_a_beta_or_without_measured_rows():
    manifest = load_bundle(EXAMPLES / "cifar10").manifest
    assert expected_accuracy(manifest, None) is None
    assert expected_accuracy(manifest.model_copy(update={"accuracy": []}), 0.5) is None
