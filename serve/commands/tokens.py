"""`tureen tokens`: adds learned tokens to a running service, and lists, shows and removes them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from serve.commands.admin_client import AdminClient
from serve.commands.options import listener_options
from tureen.bundle.bundle import add_tokens_to_bundle, load_bundle
from tureen.bundle.token_file import TokenRecord, read_token
from tureen.commands.token_report import token_summary
from tureen.remote.locate import locate_bundle

EXIT_NOT_USED = 1


def tokens(arguments: list[str]) -> int:
    """Runs `tureen tokens`. arguments: those after `tureen tokens`.

    Returns 0, or 1 if a process of the service cannot use an added token. Raises RefusedError if the server refuses a
    request or is unreachable, TokenFileError if a token file is damaged, and the errors of `add_tokens_to_bundle`.
    """
    options = _parser().parse_args(arguments)
    if options.command == "pack":
        return _pack(options)
    client = AdminClient(options.url, options.token, options.state_dir)
    run = {"add": _add, "list": _list, "show": _show, "remove": _remove}
    status: int = run[options.command](client, options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen tokens",
        description="Add tokens that `tureen adapt` learned to a running service, without a reload. "
        "`tureen beta history` has each change, and `tureen beta rollback` restores removed tokens.",
        epilog='example: tureen tokens add fog.token --reason "foggy season"',
    )
    common = listener_options()
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", parents=[common], help="add the tokens in token files")
    add.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file NAME.token")
    add.add_argument("--replace", action="store_true", help="replace a token of the same name")
    add.add_argument("--dry-run", action="store_true", help="check the tokens against the served model, and add none")
    commands.add_parser("list", parents=[common], help="list the added tokens")
    show = commands.add_parser("show", parents=[common], help="show the origin and the accuracy of a token")
    show.add_argument("name")
    remove = commands.add_parser("remove", parents=[common], help="remove a token that no policy needs")
    remove.add_argument("name")
    pack = commands.add_parser("pack", help="write a copy of a bundle that contains the tokens; needs no server")
    pack.add_argument("bundle", help="a bundle, or the name of an example")
    pack.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file NAME.token")
    pack.add_argument("--out", type=Path, required=True, help="a new directory for the copy")
    for command in (add, remove):
        command.add_argument("--reason", required=True, help="reason, for the history")
    return parser


def _add(client: AdminClient, options: argparse.Namespace) -> int:
    added = [(read_token(file).record.name, file.read_bytes()) for file in options.files]
    status = 0
    for name, content in added if len(added) > 1 and not options.dry_run else []:  # all or none
        revision = client.state()["revision"]
        client.add_token(revision, name, content, options.reason, may_replace=options.replace, dry_run=True)
    for name, content in added:
        revision = client.state()["revision"]
        state = client.add_token(
            revision, name, content, options.reason, may_replace=options.replace, dry_run=options.dry_run
        )
        if options.json:
            print(json.dumps(state))
        elif options.dry_run:
            print(f"{name}: the service can use the token; nothing was added")
        else:
            print(f"{name}: added at revision {state['revision']}, {_applied(state)}")
        for worker in state["workers"]:
            if name in worker["parked_tokens"]:
                print(f"worker {worker['worker']}: {worker['parked_tokens'][name]}", file=sys.stderr)
                status = EXIT_NOT_USED
    return status


def _list(client: AdminClient, options: argparse.Namespace) -> int:
    listed = client.tokens()
    if options.json:
        print(json.dumps(listed))
        return 0
    for token in listed:
        use = f"parked: {token['parked']}" if token["parked"] else ", ".join(token["policies"]) or "in no policy"
        print(f"{token['name']:<24} {_learned_from(token):<28} {use}")
    if not listed:
        print("no operator has added a token")
    return 0


def _show(client: AdminClient, options: argparse.Namespace) -> int:
    token = client.token(options.name)
    print(json.dumps(token) if options.json else format_token(token))
    return 0


def _remove(client: AdminClient, options: argparse.Namespace) -> int:
    state = client.remove_token(client.state()["revision"], options.name, options.reason)
    if options.json:
        print(json.dumps(state))
    else:
        print(f"{options.name}: removed at revision {state['revision']}, {_applied(state)}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    bundle = load_bundle(locate_bundle(options.bundle))
    packed = [read_token(file) for file in options.files]
    add_tokens_to_bundle(bundle, packed, options.out)
    names = ", ".join(token.record.name for token in packed)
    print(f"{options.out}: {bundle.manifest.name} {bundle.manifest.version} with the tokens {names}")
    return 0


def format_token(token: dict[str, Any]) -> str:
    """Returns a token as text. token: the JSON object of GET /admin/tokens/NAME."""
    lines = [f"{token['name']}: SHA-256 {token['sha256']}"]
    if token["parked"]:
        lines.append(f"parked    {token['parked']}")
    lines.append(f"policies  {', '.join(token['policies']) or 'none'}")
    record = token["record"]
    if record is None:
        return "\n".join([*lines, "its file cannot be read"])
    return "\n".join([*lines, token_summary(TokenRecord.model_validate(record))])


def _learned_from(token: dict[str, Any]) -> str:
    record = token["record"]
    return "no record" if record is None else f"{record['images']:,} images"


def _applied(state: dict[str, Any]) -> str:
    applied = sum(worker["revision"] >= state["revision"] for worker in state["workers"])
    return f"applied by {applied} of {len(state['workers'])} workers"
