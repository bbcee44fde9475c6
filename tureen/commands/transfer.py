"""`tureen pull` and `tureen push`: copy a bundle from and to the hub, S3 or a mounted directory."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import BUNDLE_HELP
from tureen.errors import BundleAddressError, BundleError
from tureen.machine import default_cache_directory
from tureen.remote.address import FORMS, BundleAddress, parse_address
from tureen.remote.download import download_bundle
from tureen.remote.locate import locate_bundle
from tureen.remote.upload import push_bundle

ADDRESS_HELP = "; ".join(FORMS.values())


def pull(arguments: list[str]) -> int:
    """Runs `tureen pull`: downloads and verifies a bundle, and prints its directory. Returns exit status 0.

    arguments: those after `tureen pull`. Raises BundleError if the bundle cannot be downloaded or is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="tureen pull",
        description="Download a bundle into the cache, verify it, and print its directory.",
        epilog="example: tureen pull hf://owner/name@v1 --out digits-bundle",
    )
    parser.add_argument("address", metavar="ADDRESS", help=ADDRESS_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="also copy the bundle to this new directory")
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.exists():
        raise BundleError(f"{options.out} exists already: choose another directory")
    path = download_bundle(_address(options.address), default_cache_directory())
    load_bundle(path)
    if options.out is not None:
        _copy(path, options.out)
    print(options.out or path)
    return 0


def push(arguments: list[str]) -> int:
    """Runs `tureen push`: verifies and uploads a bundle, and prints the files. Returns exit status 0.

    arguments: those after `tureen push`. Raises BundleError if the bundle is damaged or cannot be uploaded.
    """
    parser = argparse.ArgumentParser(
        prog="tureen push",
        description="Verify a bundle, and upload the files that differ from those at the address.",
        epilog="example: tureen push digits-bundle hf://owner/name --message 'Train for 100 epochs'",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("address", metavar="ADDRESS", help=ADDRESS_HELP)
    parser.add_argument("--message", help="of the commit on the hub (default: name and version of the model)")
    parser.add_argument("--private", action="store_true", help="make a repository that this command creates private")
    options = parser.parse_args(arguments)
    address = _address(options.address)
    result = push_bundle(locate_bundle(options.bundle), address, message=options.message, is_private=options.private)
    for name in result.uploaded:
        print(f"uploaded   {name}")
    for name in result.unchanged:
        print(f"unchanged  {name}")
    print(f"{address} has the bundle" + (f", commit {result.commit}" if result.commit else ""))
    return 0


def _address(text: str) -> BundleAddress:
    address = parse_address(text)
    if address is None:
        raise BundleAddressError(f"{text} is not an address: give {ADDRESS_HELP}")
    return address


def _copy(path: Path, out: Path) -> None:
    """Copies the bundle to a temporary directory beside `out`, and renames it to `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        shutil.copytree(path, Path(scratch) / "copy")
        (Path(scratch) / "copy").rename(out)
