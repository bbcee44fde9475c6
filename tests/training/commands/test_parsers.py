"""The options of `train`, `evaluate`, `tune` and `gallery`; tests/tureen/test_cli.py reads them without PyTorch."""

import pytest

from training.commands.parsers import evaluate_parser, gallery_parser, train_parser, tune_parser
from training.interruption import SAVE_INTERVAL_S
from training.recipes import RECIPES


def test_every_recipe_can_be_trained_and_the_state_is_saved_at_the_default_interval():
    for name in RECIPES:
        options = train_parser().parse_args([name])
        assert (options.recipe, options.save_interval_s) == (name, SAVE_INTERVAL_S)


@pytest.mark.parametrize(("option", "value"), [("--group-by", "("), ("--save-interval-s", "-1"), ("--threads", "0")])
def test_a_wrong_option_of_a_training_is_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        train_parser().parse_args(["digits", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def test_the_other_commands_have_their_defaults():
    assert evaluate_parser().parse_args(["run"]).norm == "linf"
    assert tune_parser().parse_args(["run"]).betas[-1] == 1
    assert gallery_parser().parse_args(["run", "--out", "gallery"]).steps == 100
