import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tureen.errors import InvalidBetaError, InvalidMixError, InvalidStrengthError, UnknownTokenError
from tureen.tokens import (
    MAX_MIX_TOKENS,
    MAX_WEIGHT,
    Mix,
    Strength,
    beta_grid,
    mix,
    mix_rows,
    move_to_robust,
    parse_beta,
    parse_mix,
    parse_strength,
    strength_grid,
    token_mix,
)

CLEAN = np.array([1.0, -2.0, 3.0], dtype=np.float32)
ROBUST = np.array([5.0, 0.5, -1.0], dtype=np.float32)


def test_beta_zero_is_exactly_the_clean_token_and_one_exactly_the_robust_one():
    np.testing.assert_array_equal(mix(CLEAN, ROBUST, 0.0), CLEAN)
    np.testing.assert_array_equal(mix(CLEAN, ROBUST, 1.0), ROBUST)


def test_a_soup_is_the_mixture_at_its_beta():
    np.testing.assert_allclose(mix(CLEAN, ROBUST, 0.25), [2.0, -1.375, 2.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_each_row_is_the_soup_of_its_beta(betas):
    rows = mix_rows(CLEAN, ROBUST, betas)
    assert rows.dtype == np.float32
    assert rows.shape == (len(betas), 3)
    for row, beta in zip(rows, betas, strict=True):
        np.testing.assert_allclose(row, mix(CLEAN, ROBUST, np.float32(beta)), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "beta"),
    [("clean", 0.0), ("robust", 1.0), ("0.7", 0.7), (" 1 ", 1.0), ("1e-3", 0.001), ("-0.0", 0.0), (1, 1.0), (0.5, 0.5)],
)
def test_a_valid_beta_is_parsed(text, beta):
    assert parse_beta(text) == beta
    assert math.copysign(1, parse_beta(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "inf",
        "-inf",
        "1e309",
        "2",
        "-0.1",
        "abc",
        "",
        "0,7",
        "1_0e-1",
        "0x1",
        "Clean",
        "٠",
        True,
        None,
        1.0001,
        [1],
    ],
)
def test_an_invalid_beta_is_refused(text):
    with pytest.raises(InvalidBetaError, match="β is"):
        parse_beta(text)


@given(st.text())
def test_any_text_is_a_beta_in_range_or_an_error(text):
    try:
        assert 0 <= parse_beta(text) <= 1
    except InvalidBetaError as error:
        assert len(str(error)) < 200


def test_grids():
    assert beta_grid("0:1:0.25") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert beta_grid("0:1:0.3") == [0.0, 0.3, 0.6, 0.9]
    assert beta_grid("clean,0.5,robust") == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("text", ["0:1", "0:1:0", "1:0:0.1", "0:2:0.5", "0:1:0.0001", "", "0::1"])
def test_an_invalid_grid_is_refused(text):
    with pytest.raises(InvalidBetaError):
        beta_grid(text)


@pytest.mark.parametrize(("text", "value"), [("0.7", 0.7), (" 1 ", 1.0), ("-0.0", 0.0), (1, 1.0), (0.5, 0.5)])
def test_a_valid_strength_is_parsed(text, value):
    assert parse_strength(text) == Strength(value)
    assert math.copysign(1, parse_strength(text).value) == 1


@pytest.mark.parametrize(
    "text", ["clean", "robust", "nan", "inf", "2", "-0.1", "", "0,7", "1_0e-1", "٠", True, None, 1.1]
)
def test_anything_else_is_no_strength(text):
    with pytest.raises(InvalidStrengthError, match="give a number from 0"):
        parse_strength(text)


def test_a_grid_of_strengths_has_the_notation_of_a_grid_of_beta():
    assert strength_grid("0:1:0.5") == [Strength(0), Strength(0.5), Strength(1)]
    assert strength_grid("0.25,0.75") == [Strength(0.25), Strength(0.75)]
    for text in ("0,robust", "0:1", "1:0:0.5", "0:1:0", "0:1:0.0001"):
        with pytest.raises(InvalidStrengthError):
            strength_grid(text)


TOKENS = {
    name: np.random.default_rng(i).normal(size=5).astype(np.float32)
    for i, name in enumerate(("clean", "robust", "fog"))
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fog:1", Mix((("fog", 1.0),))),
        ("fog:7", Mix((("fog", 1.0),))),
        ("robust:0.5, clean:0.2,fog:0.3", Mix((("clean", 0.2), ("fog", 0.3), ("robust", 0.5)))),
        ("robust:1,fog:1,clean:0", Mix((("fog", 0.5), ("robust", 0.5)))),
        ({"fog": 3, "robust": 1}, Mix((("fog", 0.75), ("robust", 0.25)))),
        ("clean:0.3,robust:0.7", 0.7),
        ("clean:3", 0.0),
        ("robust:1e-3", 1.0),
    ],
)
def test_the_weights_are_divided_by_their_sum(value, expected):
    parsed = parse_mix(value)
    if isinstance(expected, float):
        assert parsed == pytest.approx(expected)
    else:
        assert dict(parsed.weights) == pytest.approx(dict(expected.weights))
        assert list(dict(parsed.weights)) == list(dict(expected.weights))


def test_weights_may_have_another_sum_if_asked():
    assert parse_mix("fog:0.5", normalize=False) == Mix((("fog", 0.5),))
    assert parse_mix("clean:1,robust:1", normalize=False) == Mix((("clean", 1.0), ("robust", 1.0)))
    assert parse_mix("clean:0.75,robust:0.25", normalize=False) == 0.25


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "not a token with its weight"),
        ("fog", "not a token with its weight"),
        ("fog:1,", "not a token with its weight"),
        ("fog:", "weight of fog"),
        ("fog:-0.1", "from 0 to 100"),
        ("fog:nan", "from 0 to 100"),
        ("fog:inf", "from 0 to 100"),
        ("fog:1_0", "from 0 to 100"),
        ("fog:٣", "from 0 to 100"),
        (f"fog:{MAX_WEIGHT + 1}", "from 0 to 100"),
        ({"fog": True}, "from 0 to 100"),
        ({"fog": None}, "from 0 to 100"),
        ({"fog": 10**400}, "from 0 to 100"),
        ("fog:1,fog:2", "twice"),
        ("Fog:1", "cannot be the name"),
        ("f g:1", "cannot be the name"),
        ({7: 1.0}, "cannot be the name"),
        ("fog:0,clean:0", "all weights of the mix are 0"),
        ({}, "all weights of the mix are 0"),
        (",".join(f"t{i}:1" for i in range(MAX_MIX_TOKENS + 1)), "at most 8"),
        (",".join(f"t{i}:1" for i in range(10**6)), "1,000,000 tokens"),
    ],
)
def test_another_mix_is_refused_with_its_reason(value, message):
    with pytest.raises(InvalidMixError, match=message):
        parse_mix(value)


def test_a_token_is_mixed_with_the_robust_one_by_beta():
    assert token_mix("fog") == Mix((("fog", 1.0),))
    assert token_mix("fog", 0.25) == Mix((("fog", 0.75), ("robust", 0.25)))
    assert token_mix("fog", 1.0) == 1.0
    assert token_mix("clean", 0.25) == 0.25
    assert token_mix("robust", 0.25) == 1.0


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.booleans())
def test_a_vector_is_the_weighted_sum_of_the_tokens(weights, normalize):
    parsed = parse_mix(dict(zip(TOKENS, weights, strict=True)), normalize=normalize)
    expected = sum(weight * token for weight, token in zip(weights, TOKENS.values(), strict=True))
    vector = parsed.vector(TOKENS)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, expected / sum(weights) if normalize else expected, rtol=1e-5, atol=1e-5)


@given(st.floats(0, 1))
def test_a_mix_of_both_modes_is_a_beta_with_the_same_vector(beta):
    parsed = parse_mix({"clean": 1 - beta, "robust": beta})
    np.testing.assert_allclose(
        mix(TOKENS["clean"], TOKENS["robust"], parsed), mix(TOKENS["clean"], TOKENS["robust"], beta), atol=1e-6
    )


def _vector(choice):
    return choice.vector(TOKENS) if isinstance(choice, Mix) else mix(TOKENS["clean"], TOKENS["robust"], choice)


@given(
    st.sampled_from(["fog:1", "fog:0.7,robust:0.3", "clean:0.2,fog:0.5,robust:0.3", "clean:1", "robust:1"]),
    st.floats(0, 1),
)
def test_a_choice_that_moves_to_robust_is_the_weighted_sum_of_both_vectors(text, beta):
    choice = parse_mix(text)
    expected = (1 - beta) * _vector(choice) + beta * TOKENS["robust"]
    np.testing.assert_allclose(_vector(move_to_robust(choice, beta)), expected, atol=1e-5)


def test_beta_of_a_mix_is_the_share_of_the_robust_token():
    assert parse_mix("fog:3,robust:1").beta == 0.25
    assert parse_mix("fog:0.5,robust:0.5", normalize=False).beta == 0.5
    assert parse_mix("fog:1").beta == 0


def test_an_unknown_token_is_refused_with_the_names_there_are():
    with pytest.raises(
        UnknownTokenError, match=r"no token 'frog'; did you mean 'fog'\?; the tokens are clean, fog, robust"
    ):
        parse_mix("frog:1").vector(TOKENS)
    with pytest.raises(UnknownTokenError, match="t108 and 980 others"):
        parse_mix("fog:1").check_names([f"t{i:02}" for i in range(1000)])
