"""Finds a bundle by its path, its address, or the name of an example. Each command that takes a BUNDLE uses this."""

from __future__ import annotations

from pathlib import Path

from tureen.bundle.examples import find_bundle
from tureen.machine import default_cache_directory
from tureen.remote.address import parse_address
from tureen.remote.download import download_bundle


def locate_bundle(bundle: Path | str, *, must_exist: bool = True, cache: Path | None = None) -> Path:
    """Returns the directory of a bundle. Downloads the bundle into the cache if `bundle` is an address.

    bundle, must_exist: as for `find_bundle`. cache: the cache directory; None: that of the user. Raises BundleError if
    there is no such bundle, and the errors of `parse_address` and `download_bundle`.
    """
    address = parse_address(bundle)
    if address is None:
        return find_bundle(bundle, must_exist=must_exist)
    return download_bundle(address, cache or default_cache_directory())
