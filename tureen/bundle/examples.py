"""Finds the bundles that are part of Tureen, by name. Each command that takes a BUNDLE also takes such a name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from tureen.bundle.bundle import MANIFEST, RUN_RECORD
from tureen.errors import BundleError, did_you_mean

EXAMPLES = Path(__file__).parents[1] / "examples"
DEFAULT_EXAMPLE: Final = "signs"
BUNDLE_HELP: Final = (
    f"directory that `tureen export` wrote, address such as hf://owner/name, or name of an example: {DEFAULT_EXAMPLE}"
)

logger = logging.getLogger("tureen.bundle")


def example_names() -> list[str]:
    """Returns the names of the example bundles, in alphabetical order."""
    return sorted(manifest.parent.name for manifest in EXAMPLES.glob(f"*/{MANIFEST}"))


def find_bundle(bundle: Path | str, *, must_exist: bool = True) -> Path:
    """Returns `bundle` if it is a path that exists, or else the path of the example of this name. Reads no file of it.

    A directory with the name of an example is that example, unless the directory holds a bundle. In both cases, logs a
    warning that says which one it is. If `bundle` is neither a path nor an example, raises BundleError.

    must_exist: False for a path that may be that of a run. A directory with a run then counts like a bundle, and a path
    that does not exist is returned.
    """
    path = Path(bundle)
    names = example_names()
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if str(path) in names:
            return EXAMPLES / path
        if must_exist:
            raise BundleError(
                f"{path} is not a bundle: there is no such path; give the directory of a bundle, an address such as "
                f"hf://owner/name, or the name of an example: {', '.join(names)}{did_you_mean(str(path), names)}"
            ) from None
    except OSError:  # the caller reads it, and gets the reason again
        return path
    if str(path) in names and path.is_dir():
        holds = "bundle" if (path / MANIFEST).exists() else "run" if (path / RUN_RECORD).exists() else None
        if holds is None or (holds == "run" and must_exist):
            logger.warning("the directory %s holds no bundle: this is the example %s of Tureen", path, path)
            return EXAMPLES / path
        logger.warning("this is the %s in the directory %s, not the example %s of Tureen", holds, path, path)
    return path
