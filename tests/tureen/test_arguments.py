"""What an option of the command line takes, and the words with which it refuses the rest."""

import argparse

import pytest

from tureen.arguments import (
    beta_argument,
    betas_argument,
    one_of,
    port_argument,
    positive_int,
    radius_argument,
    strength_argument,
)
from tureen.tokens import Strength


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("007", 7), ("4096", 4096)])
def test_a_positive_number_is_read(text, number):
    assert positive_int(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "+1", "1.5", "1e3", "1_0", " 1", "", "²", "many"])
def test_anything_else_is_refused_with_the_text_that_was_given(text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        positive_int(text)
    assert str(error.value) == f"{text!r} is not a whole number of 1 or more"


@pytest.mark.parametrize(("text", "beta"), [("0", 0.0), ("0.7", 0.7), ("robust", 1.0)])
def test_a_beta_is_a_number_or_the_name_of_a_mode(text, beta):
    assert beta_argument(text) == beta


@pytest.mark.parametrize(("text", "betas"), [("0,0.5,robust", [0.0, 0.5, 1.0]), ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1])])
def test_betas_are_a_list_or_a_grid(text, betas):
    assert betas_argument(text) == betas


def test_a_strength_is_a_number():
    assert strength_argument("0.5") == Strength(0.5)


@pytest.mark.parametrize("read", [beta_argument, betas_argument, strength_argument])
@pytest.mark.parametrize("text", ["", "1.5", "-0.1", "nan", "clear"])
def test_a_wrong_beta_is_refused_with_the_valid_values(read, text):
    with pytest.raises(argparse.ArgumentTypeError, match="give a number from 0"):
        read(text)


def test_a_name_of_a_list_is_refused_with_the_message_of_argparse_and_the_similar_name():
    assert one_of(["apgd", "pgd"])("pgd") == "pgd"
    with pytest.raises(argparse.ArgumentTypeError) as error:
        one_of(["apgd", "square"])("sqare")
    assert str(error.value) == "invalid choice: 'sqare' (choose from 'apgd', 'square'); did you mean 'square'?"


def test_a_port_is_a_number_up_to_65535():
    assert [port_argument(text) for text in ("0", "8000", "65535")] == [0, 8000, 65535]
    for text in ("65536", "-1", "", "x", "8e3", "9" * 400, "٣"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a port from 0 to 65535"):
            port_argument(text)


def test_a_radius_is_at_least_one_level_of_an_8_bit_image():
    assert radius_argument("4") == 4
    for text in ("0.5", "256", "nan", "four"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 1 to 255"):
            radius_argument(text)
