import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import Images
from training.evaluate import evaluate, wilson


@given(st.integers(1, 5000), st.data())
def test_an_interval_holds_its_share_and_stays_in_range(n, data):
    correct = data.draw(st.integers(0, n))
    accuracy = wilson(correct, n)
    assert 0 <= accuracy.low <= accuracy.value == correct / n <= accuracy.high <= 1


def test_an_interval_is_wilsons():
    # Wilson's interval for 8 of 10, as published tables have it: 0.490 to 0.943.
    accuracy = wilson(8, 10)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.490, 0.943), abs=5e-4)


def test_the_digits_are_what_the_readme_says(checkpoint):
    """The aim is 98 % clean, 58 % robust and a dial of 20 points; a seed's luck on 450 images is a point or two."""
    rows = {row.beta: row for row in checkpoint.accuracy}
    assert all(row.n == 450 and row.attack == "PGD-40" and row.epsilon_255 == 38 for row in rows.values())
    assert rows[0.0].clean.value >= 0.97
    assert rows[1.0].robust.value >= 0.56
    assert rows[1.0].robust.value - rows[0.0].robust.value >= 0.18
    assert rows[0.5].robust.value >= rows[0.0].robust.value


def test_measuring_again_gives_the_same_rows(checkpoint):
    few = Images(checkpoint.held_out.pixels[:60], checkpoint.held_out.labels[:60])
    first, again = (evaluate(checkpoint.model, few, betas=[0.3, 1.0], epsilon_255=38, steps=5) for _ in range(2))
    assert first == again
    assert [row.beta for row in first] == [0.3, 1.0]


def test_a_radius_of_a_half_drives_to_chance_and_zero_to_clean(checkpoint):
    """The attack is able: where anything is allowed, nothing is left; where nothing is, everything."""
    few = Images(checkpoint.held_out.pixels[:100], checkpoint.held_out.labels[:100])
    for beta in (0.0, 1.0):
        (unlimited,) = evaluate(checkpoint.model, few, betas=[beta], epsilon_255=127.5, steps=40)
        assert unlimited.robust.value <= 0.1
        (none,) = evaluate(checkpoint.model, few, betas=[beta], epsilon_255=0, steps=2)
        assert none.robust.value == none.clean.value


def test_more_steps_are_never_weaker_by_more_than_chance(checkpoint):
    one, many = (
        evaluate(checkpoint.model, checkpoint.held_out, betas=[1.0], epsilon_255=38, steps=steps)[0]
        for steps in (1, 20)
    )
    assert many.robust.value <= one.robust.value
