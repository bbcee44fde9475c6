"""The schedules of the learning rate and of the radius, at points computed by hand."""

import pytest

from training.errors import RecipeError
from training.recipes import load_recipe
from training.schedules import (
    attack_phases,
    relative_cost,
    scheduled_attack_steps,
    scheduled_epsilon,
    scheduled_learning_rate,
)


def test_the_schedules():
    recipe = load_recipe("digits", ["warmup=0.2", "learning_rate=1", "epsilon_ramp=0.5", "epsilon_255=51"])
    assert [scheduled_learning_rate(recipe, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [scheduled_epsilon(recipe, p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert scheduled_epsilon(load_recipe("digits", ["epsilon_ramp=0", "epsilon_255=51"]), 0) == pytest.approx(0.2)


def test_the_radius_stays_0_before_its_ramp_and_the_attack_has_fewer_steps_in_it():
    settings = ["epsilon_255=51", "epsilon_start=0.25", "epsilon_ramp=0.5", "attack_steps=2", "attack_steps_in_ramp=1"]
    recipe = load_recipe("digits", settings)
    points = (0, 0.2, 0.25, 0.5, 0.74, 0.75, 1)
    assert [scheduled_epsilon(recipe, p) for p in points] == pytest.approx([0, 0, 0, 0.1, 0.196, 0.2, 0.2])
    assert [scheduled_attack_steps(recipe, p) for p in points] == [0, 0, 0, 1, 1, 2, 2]
    sudden = load_recipe("digits", ["epsilon_255=51", "epsilon_start=0.25", "epsilon_ramp=0", "attack_steps=2"])
    assert [scheduled_epsilon(sudden, p) for p in (0, 0.2, 0.25, 1)] == pytest.approx([0, 0, 0.2, 0.2])
    assert [scheduled_attack_steps(sudden, p) for p in (0, 0.2, 0.25, 1)] == [0, 0, 2, 2]
    assert scheduled_attack_steps(load_recipe("digits", ["attack_steps=2"]), 0.1) == 2
    with pytest.raises(RecipeError, match="together must be at most 1"):
        load_recipe("digits", ["epsilon_start=0.6", "epsilon_ramp=0.5"])


@pytest.mark.parametrize(("alpha", "passes"), [(0, 5 + 5 * 3), (0.5, 10 + 5 * 4), (1, 10)])
def test_the_cost_of_steps_counts_the_losses_and_the_steps_of_the_attack(alpha, passes):
    settings = [f"alpha={alpha}", "epsilon_start=0.5", "epsilon_ramp=0", "attack_steps=2"]
    assert relative_cost(load_recipe("digits", settings), 0, 10, 10) == passes


@pytest.mark.parametrize(("alpha", "passes"), [(0, 5 + 5 * 4), (0.5, 10 + 5 * 5), (1, 10)])
def test_trades_costs_one_pass_more_in_a_step_with_an_attack(alpha, passes):
    settings = [f"alpha={alpha}", "epsilon_start=0.5", "epsilon_ramp=0", "attack_steps=2", "objective=trades"]
    assert relative_cost(load_recipe("digits", settings), 0, 10, 10) == passes


def test_the_phases_are_the_steps_with_equally_many_attack_steps():
    settings = ["epsilon_start=0.25", "epsilon_ramp=0.5", "attack_steps=2", "attack_steps_in_ramp=1"]
    recipe = load_recipe("digits", settings)
    assert attack_phases(recipe, 8) == {0: range(3), 1: range(3, 6), 2: range(6, 8)}
    for attack, steps in attack_phases(recipe, 1000).items():
        assert {scheduled_attack_steps(recipe, step / 1000) for step in steps} == {attack}
    assert attack_phases(load_recipe("digits", ["alpha=1"]), 8) == {0: range(8)}
