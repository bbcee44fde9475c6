"""Parses the values of command-line options, and adds the options that several commands have. Knows no command.

A function that parses a value can be the `type` of an argparse argument. It raises argparse.ArgumentTypeError if the
text is not in the documented form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from tureen.errors import InvalidBetaError, InvalidStrengthError, did_you_mean
from tureen.tokens import Strength, beta_grid, parse_beta, parse_strength


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Returns a function that returns its text if it is one of `names`.

    The message of its error is that of argparse for `choices`, and ends with the most similar name.
    """
    valid = list(names)

    def parse(text: str) -> str:
        if text not in valid:
            choices = ", ".join(map(repr, valid))
            raise argparse.ArgumentTypeError(
                f"invalid choice: {text!r} (choose from {choices}){did_you_mean(text, valid)}"
            )
        return text

    return parse


def positive_int(text: str) -> int:
    """Returns a whole number of 1 or more, from decimal digits without a sign."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def port_argument(text: str) -> int:
    """Returns a TCP port from 0 to 65535, from decimal digits without a sign."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def beta_argument(text: str) -> float:
    """Returns the β of a text such as "0.7", "clean" or "robust", as `parse_beta` does."""
    try:
        return parse_beta(text)
    except InvalidBetaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def strength_argument(text: str) -> Strength:
    """Returns the strength of a text such as "0.7", as `parse_strength` does."""
    try:
        return parse_strength(text)
    except InvalidStrengthError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def betas_argument(text: str) -> list[float]:
    """Returns the β of a text such as "0:1:0.25" or "0,0.5,robust", as `beta_grid` does."""
    try:
        return beta_grid(text)
    except InvalidBetaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_token_file_option(parser: argparse.ArgumentParser) -> None:
    """Adds --token-file, which gives `token_file`, a list of paths."""
    parser.add_argument(
        "--token-file",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="token of `tureen adapt`; repeatable",
    )


def add_decoding_options(parser: argparse.ArgumentParser, workers: int) -> None:
    """Adds --strict and --workers, for a command that decodes images. workers: the default number of threads."""
    parser.add_argument(
        "--strict", action="store_true", help="fail if an image cannot be decoded, instead of skipping it"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=workers,
        help="threads that decode images (default: %(default)s)",
    )


def radius_argument(text: str) -> float:
    """Returns the number in `text`, a radius in 1/255, from 1 to 255.

    The minimum is 1 because a value of an 8-bit image cannot change by less.
    """
    try:
        radius = float(text)
    except ValueError:
        radius = 0.0
    if not 1 <= radius <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 255: an 8-bit image changes by 1 or more")
    return radius


def add_picture_attack_options(parser: argparse.ArgumentParser) -> None:
    """Adds --epsilon-255, --steps and --seed, for a command that attacks single images."""
    parser.add_argument(
        "--epsilon-255",
        type=radius_argument,
        help="largest change of a value, l∞, in 1/255; 1 to 255 (default: that of the recipe)",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=100, help="steps of each run of the attack (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random starts (default: %(default)s)")
