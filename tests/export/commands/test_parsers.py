"""The options of `export`, `calibrate`, `adapt` and `attack`; tests/tureen/test_cli.py reads them without PyTorch."""

from pathlib import Path
from typing import get_args

import pytest

from export.artefacts import PlanBuilder
from export.commands.parsers import PLAN_BUILDERS, adapt_parser, attack_parser, calibrate_parser, export_parser
from export.parity import ParityLimits


def test_every_compiler_of_plans_can_be_chosen():
    assert get_args(PlanBuilder) == PLAN_BUILDERS


def test_the_limits_of_an_export_are_those_of_the_comparison():
    options = export_parser().parse_args(["run", "--out", "bundle"])
    assert options.max_logit_diff == ParityLimits().fp32_max_abs_diff
    assert options.max_int8_points == ParityLimits().int8_accuracy_points


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--learning-rate", "0"), ("--epsilon-255", "256")])
def test_a_wrong_option_of_an_adaptation_is_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        adapt_parser().parse_args(["signs", "--data", "x", "--name", "fog", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def test_an_attack_is_on_a_bundle_or_on_a_checkpoint(capsys):
    assert attack_parser().parse_args(["a.png", "--out", "b.png", "--bundle", "signs"]).bundle == Path("signs")
    with pytest.raises(SystemExit):
        attack_parser().parse_args(["a.png", "--out", "b.png", "--bundle", "signs", "--checkpoint", "run"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_calibration_has_its_default_number_of_images():
    assert calibrate_parser().parse_args(["bundle", "--data", "photos"]).images == 5000


def test_a_license_is_an_identifier(capsys):
    assert export_parser().parse_args(["run", "--out", "bundle", "--license", "CC-BY-4.0"]).license == "CC-BY-4.0"
    with pytest.raises(SystemExit):
        export_parser().parse_args(["run", "--out", "bundle", "--license", "free for all"])
    assert "argument --license: 'free for all' is not the identifier of a license" in capsys.readouterr().err
