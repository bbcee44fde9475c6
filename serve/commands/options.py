"""Values on a command line, with our words where they are none: what argparse calls as `type`."""

from __future__ import annotations

from argparse import ArgumentTypeError

from tureen.errors import InvalidBetaError
from tureen.tokens import beta_grid, parse_beta


def beta_argument(text: str) -> float:
    """β as `parse_beta` has it; raises ArgumentTypeError."""
    try:
        return parse_beta(text)
    except InvalidBetaError as error:
        raise ArgumentTypeError(str(error)) from None


def betas_argument(text: str) -> list[float]:
    """Several, as `beta_grid` has them; raises ArgumentTypeError."""
    try:
        return beta_grid(text)
    except InvalidBetaError as error:
        raise ArgumentTypeError(str(error)) from None
