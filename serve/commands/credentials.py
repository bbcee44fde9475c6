"""`tureen credentials`: who may reach the operator's listener, in the store that a server uses or will use."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from serve.admin.operations import open_store
from serve.control.credential_store import ROLES, Credentials
from serve.settings import Settings
from tureen.bundle.bundle import load_bundle
from tureen.machine import default_state_directory


def credentials(arguments: list[str]) -> int:
    """`tureen credentials`: 0; raises ControlStoreError or InvalidChangeError."""
    parser = argparse.ArgumentParser(
        prog="tureen credentials",
        description="Make, list and revoke the bearer tokens of a service's operators. A running server knows at once.",
        epilog="example: tureen credentials digits-bundle make ada --role operate",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle that is served")
    parser.add_argument("--store", help="as given to `tureen serve`")
    parser.add_argument("--state-dir", type=Path, default=default_state_directory(), help="as given to `tureen serve`")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="a token for somebody; shown once")
    make.add_argument("name")
    make.add_argument("--role", choices=ROLES, default="read", help="read, or operate to change settings too")
    commands.add_parser("list", help="who has one").add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("revoke", help="let somebody in no longer").add_argument("name")
    options = parser.parse_args(arguments)
    settings = Settings(bundle=options.bundle, store=options.store, state_dir=options.state_dir)
    with contextlib.closing(open_store(settings, load_bundle(options.bundle).manifest.name)) as store:
        print(f"in {store.url.render_as_string()}", file=sys.stderr)  # the password hidden
        known = Credentials(store)
        if options.command == "make":
            print(known.make(options.name, options.role))
        elif options.command == "revoke":
            known.revoke(options.name)
        elif options.json:
            print(json.dumps([{"name": one.name, "role": one.role, "made_at": one.made_at} for one in known.all()]))
        else:
            for one in known.all():
                print(f"{one.name}  {one.role}  since {one.made_at[:19]}Z")
    return 0
