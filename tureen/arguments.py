"""Values of command-line options, for the `type` of argparse. Each function raises argparse.ArgumentTypeError.

Knows no command.
"""

from __future__ import annotations

import argparse

from tureen.errors import InvalidBetaError
from tureen.tokens import beta_grid, parse_beta


def positive_int(text: str) -> int:
    """A whole number of 1 or more, in decimal digits without a sign."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def beta_argument(text: str) -> float:
    """One β, in the notation of `parse_beta`."""
    try:
        return parse_beta(text)
    except InvalidBetaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def betas_argument(text: str) -> list[float]:
    """Several β, in the notation of `beta_grid`."""
    try:
        return beta_grid(text)
    except InvalidBetaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
