"""The curve between β and strength: which curves are valid, and the rounding in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve

CURVE = StrengthCurve(betas=[0, 0.5, 0.75, 1], strengths=[0, 0.2, 0.8, 1], n=9)


@given(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000))
def test_a_strength_stays_the_same_on_the_way_to_beta_and_back(strength):
    assert CURVE.strength_at(CURVE.beta_at(strength)) == strength
    assert UNMEASURED_STRENGTH.beta_at(strength) == strength


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_strength_shown_for_a_beta_within_bounds_becomes_a_beta_within_the_bounds(one, two, three):
    least, beta, most = sorted((one, two, three))
    shown = CURVE.strength_at(beta)
    found = CURVE.beta_at(shown, least, most)
    assert least <= found <= most
    assert CURVE.strength_at(found) == pytest.approx(shown, abs=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_strength_beyond_that_shown_for_a_bound_keeps_its_own_beta(one, two):
    least, most = sorted((one, two))
    for strength in (CURVE.strength_at(least) - 0.001, CURVE.strength_at(most) + 0.001):
        if 0 <= strength <= 1:
            assert CURVE.beta_at(strength, least, most) == CURVE.beta_at(strength)


@pytest.mark.parametrize(
    ("betas", "strengths", "reason"),
    [
        ([0, 0.5, 1], [0, 0.5, 0.5, 1], "3 betas and 4 strengths"),
        ([0, 0.5, 0.5, 1], [0, 0.2, 0.4, 1], "betas do not ascend"),
        ([0, 0.5, 1], [0, 1, 1], "strengths do not ascend"),
        ([0.1, 1], [0, 1], "betas do not ascend from 0 to 1"),
        ([0, 1], [0, 0.9], "strengths do not ascend from 0 to 1"),
        ([0, float("nan"), 1], [0, 0.5, 1], "finite number"),
    ],
)
def test_a_curve_that_does_not_ascend_from_0_to_1_is_refused(betas, strengths, reason):
    with pytest.raises(ValidationError, match=reason):
        StrengthCurve(betas=betas, strengths=strengths, n=1)
