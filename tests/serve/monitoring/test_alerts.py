"""Checks alerts.yml with promtool of Prometheus: its syntax, and for each alert that it fires when it should."""

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

ALERTS = files("serve") / "monitoring" / "alerts.yml"
TESTS = Path(__file__).with_name("alerts.test.yml")
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (package prometheus)")


def promtool(*arguments):
    """Runs promtool; returns its exit status and its output."""
    ran = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


@needs_promtool
def test_prometheus_accepts_the_rules():
    status, output = promtool("check", "rules", ALERTS)
    assert status == 0, output


@needs_promtool
def test_each_alert_fires_for_the_bad_instance_only():
    status, output = promtool("test", "rules", TESTS)
    assert status == 0, output


@needs_promtool
def test_a_wrong_threshold_is_detected(tmp_path):
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text().replace("> 0.01", "> 0.05"))
    cases = yaml.safe_load(TESTS.read_text())
    (tmp_path / TESTS.name).write_text(yaml.safe_dump({**cases, "rule_files": ["alerts.yml"]}))
    status, output = promtool("test", "rules", tmp_path / TESTS.name)
    assert status != 0
    assert "TureenErrors" in output


def test_each_alert_has_a_case():
    alerts = [rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    cases = yaml.safe_load(TESTS.read_text())["tests"]
    assert [case["name"] for case in cases] == alerts
    for case in cases:
        fired = {sample["labels"] for test in case["promql_expr_test"] for sample in test["exp_samples"]}
        assert any(f'alertname="{case["name"]}"' in labels for labels in fired)
