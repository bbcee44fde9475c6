import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tureen.errors import InvalidBetaError, InvalidStrengthError
from tureen.tokens import Strength, beta_grid, mix, mix_rows, parse_beta, parse_strength, strength_grid

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
