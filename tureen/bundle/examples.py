"""Finds the bundles that are part of Tureen, by name. Every command that takes a BUNDLE also takes such a name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tureen.bundle.bundle import MANIFEST
from tureen.errors import BundleError, did_you_mean

EXAMPLES = Path(__file__).parents[1] / "examples"
DEFAULT_EXAMPLE: Final = "signs"
BUNDLE_HELP: Final = f"directory that `tureen export` wrote, or the name of an example: {DEFAULT_EXAMPLE}"


def example_names() -> list[str]:
    """Returns the names of the example bundles, in alphabetical order."""
    return sorted(manifest.parent.name for manifest in EXAMPLES.glob(f"*/{MANIFEST}"))


def find_bundle(bundle: Path | str, *, must_exist: bool = True) -> Path:
    """Returns `bundle` if it is a path that exists, or else the path of the example of this name. Reads no file of it.

    If it is neither: raises BundleError, or returns `bundle` if `must_exist` is False, for a path that may be of
    something other than a bundle.
    """
    path = Path(bundle)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        names = example_names()
        if str(path) in names:
            return EXAMPLES / path
        if must_exist:
            raise BundleError(
                f"{path} is not a bundle: there is no such path; give the directory of a bundle, or the name of an "
                f"example: {', '.join(names)}{did_you_mean(str(path), names)}"
            ) from None
    except OSError:  # the caller reads it, and gets the reason again
        pass
    return path
