"""`tureen credentials`: makes, lists and revokes operators' credentials, directly in the store of the settings."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from serve.control.credential_store import ROLES, Credentials
from serve.control.revision_store import open_store
from serve.settings import Settings
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import BUNDLE_HELP
from tureen.machine import default_state_directory
from tureen.remote.locate import locate_bundle


def credentials(arguments: list[str]) -> int:
    """Runs `tureen credentials`. arguments: those after `tureen credentials`. Returns 0.

    Raises ControlStoreError if the store is unreachable. Raises InvalidChangeError if a new name is taken or invalid,
    or if no credential has the name to revoke. Raises BundleError if the bundle is missing or damaged.
    """
    parser = argparse.ArgumentParser(
        prog="tureen credentials",
        description="Make, list and revoke the bearer tokens of a service's operators. A running server applies a "
        "change to the next request.",
        epilog="example: tureen credentials digits-bundle make ada --role operate",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("--store", help="--store of the server")
    parser.add_argument("--state-dir", type=Path, default=default_state_directory(), help="--state-dir of the server")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a token and print it; it is not stored")
    make.add_argument("name")
    make.add_argument(
        "--role", choices=ROLES, default="read", help="read, or operate to also change settings (default: %(default)s)"
    )
    commands.add_parser("list", help="list the credentials").add_argument(
        "--json", action="store_true", help="print JSON"
    )
    commands.add_parser("revoke", help="revoke a credential").add_argument("name")
    options = parser.parse_args(arguments)
    settings = Settings(bundle=locate_bundle(options.bundle), store=options.store, state_dir=options.state_dir)
    with contextlib.closing(open_store(settings, load_bundle(settings.bundle).manifest.name)) as store:
        print(f"in {store.url.render_as_string()}", file=sys.stderr)  # hides the password
        stored = Credentials(store)
        if options.command == "make":
            print(stored.make(options.name, options.role))
        elif options.command == "revoke":
            stored.revoke(options.name)
        elif options.json:
            print(
                json.dumps(
                    [
                        {"name": credential.name, "role": credential.role, "made_at": credential.made_at}
                        for credential in stored.all()
                    ]
                )
            )
        else:
            for credential in stored.all():
                print(f"{credential.name}  {credential.role}  since {credential.made_at[:19]}Z")
    return 0
