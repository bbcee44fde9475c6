"""The schedules of the learning rate and of the radius, at points computed by hand."""

import pytest

from training.recipes import load_recipe
from training.schedules import scheduled_epsilon, scheduled_learning_rate


def test_the_schedules():
    recipe = load_recipe("digits", ["warmup=0.2", "learning_rate=1", "epsilon_ramp=0.5", "epsilon_255=51"])
    assert [scheduled_learning_rate(recipe, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [scheduled_epsilon(recipe, p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert scheduled_epsilon(load_recipe("digits", ["epsilon_ramp=0", "epsilon_255=51"]), 0) == pytest.approx(0.2)
