"""`tureen beta`: the operator's default β of a running service, looked at and changed from a terminal."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import datetime
from typing import Any

from serve.commands.admin_client import AdminClient, RefusedError
from serve.commands.terminal import listener_options
from serve.control.revision_diff import format_canary, format_plan
from tureen.arguments import beta_argument
from tureen.tokens import parse_beta

WAIT_S = 30.0
RETRY_S = 2.0
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EXIT_NOT_DONE = 1
SERVERS_OWN = "server"


def beta(arguments: list[str]) -> int:
    """`tureen beta`: 0, or 1 where the operator said no; raises AdminError."""
    options = _parser().parse_args(arguments)
    client = AdminClient(options.url, options.token, options.state_dir)
    run = {"get": _get, "set": _set, "history": _history, "rollback": _rollback, "cancel": _cancel, "watch": _watch}
    status: int = run[options.command](client, options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen beta",
        description="Look at and change the default β of a running service.",
        epilog='example: tureen beta set 0.8 --reason "attack on uploads" --for 1h',
    )
    common = listener_options()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("get", parents=[common], help="what is in force, and what is planned")
    change = commands.add_parser("set", parents=[common], help="change the default β, or what clients may choose")
    change.add_argument("beta", nargs="?", type=_beta, help="0 to 1, clean or robust; server: the server's own default")
    change.add_argument(
        "--min", dest="beta_min", type=beta_argument, metavar="β", help="least β that clients may choose"
    )
    change.add_argument(
        "--max", dest="beta_max", type=beta_argument, metavar="β", help="greatest β that they may choose"
    )
    change.add_argument("--clients-may-choose", choices=("yes", "no"), help="no: a request that chooses gets 403")
    change.add_argument(
        "--policy", dest="policies", type=_policy, action="append", metavar="NAME=β", help="NAME= takes it away"
    )
    change.add_argument(
        "--canary", type=_canary, metavar="β:SHARE", help="0.9:0.1 gives a tenth of the traffic 0.9; none ends it"
    )
    when = change.add_mutually_exclusive_group()
    when.add_argument("--for", dest="ttl_s", type=_duration, metavar="TIME", help="revert after 90s, 30m, 1h or 2d")
    when.add_argument("--at", type=_time, metavar="TIME", help="not now but then, such as 2027-01-31T08:00:00Z")
    change.add_argument("--over", dest="ramp_s", type=_duration, metavar="TIME", help="move there in ten steps")
    history = commands.add_parser("history", parents=[common], help="who changed what, when and why")
    history.add_argument("--limit", type=_limit, default=20, help="revisions shown, 1 to 1000 (default: %(default)s)")
    history.add_argument("--before", type=_revision, metavar="REVISION", help="older ones than this")
    history.add_argument("--verify", action="store_true", help="check the chain of hashes over the whole history")
    rollback = commands.add_parser("rollback", parents=[common], help="back to an earlier revision, as a new one")
    rollback.add_argument("revision", type=_revision)
    cancel = commands.add_parser("cancel", parents=[common], help="take back what is planned")
    cancel.add_argument("id", help="as `tureen beta get` shows it")
    for command in (change, rollback, cancel):
        command.add_argument("--reason", required=True, help="for whoever reads the history")
    for command in (change, rollback):
        command.add_argument("--yes", action="store_true", help="do not ask")
    commands.add_parser("watch", parents=[common], help="show every change as it happens, until Ctrl-C")
    return parser


def _get(client: AdminClient, options: argparse.Namespace) -> int:
    state = client.state()
    print(json.dumps(state) if options.json else format_state(state))
    return 0


def _set(client: AdminClient, options: argparse.Namespace) -> int:
    change = _change(options)
    state = client.state()
    would_be = client.change(state["revision"], change, dry_run=True)
    if not options.yes and not _agreed(state, would_be):
        return EXIT_NOT_DONE
    return _done(client.change(state["revision"], change), options)


def _change(options: argparse.Namespace) -> dict[str, Any]:
    names = ("ttl_s", "ramp_s", "at", "beta_min", "beta_max")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.beta is not None:
        given["default_beta"] = None if options.beta == SERVERS_OWN else options.beta
    if options.clients_may_choose is not None:
        given["clients_may_choose"] = options.clients_may_choose == "yes"
    if options.policies is not None:
        given["policies"] = dict(options.policies)
    if options.canary is not None:
        given["canary"] = options.canary or None
    return {**given, "reason": options.reason}


def _rollback(client: AdminClient, options: argparse.Namespace) -> int:
    state = client.state()
    would_be = client.rollback(state["revision"], options.revision, options.reason, dry_run=True)
    if not options.yes and not _agreed(state, would_be):
        return EXIT_NOT_DONE
    return _done(client.rollback(state["revision"], options.revision, options.reason), options)


def _cancel(client: AdminClient, options: argparse.Namespace) -> int:
    return _done(client.cancel(client.state()["revision"], options.id, options.reason), options)


def _history(client: AdminClient, options: argparse.Namespace) -> int:
    verified = client.verify() if options.verify else None
    rows = client.history(options.limit, options.before)
    if options.json:
        print(json.dumps({"revisions": rows, "verified": verified}))
        return 0
    for row in rows:
        what = ", ".join(row["changes"]) or "nothing changed"
        print(f"{row['revision']:>6}  {row['at'][:19]}Z  {row['who']}  {row['action']}: {what}  “{row['reason']}”")
    if verified is not None:
        print(f"{verified} revisions, each with the hash of the one before: sound")
    return 0


def _watch(client: AdminClient, options: argparse.Namespace) -> int:
    seen, is_there = (-1, True), True
    while True:
        try:
            state = client.state(None if seen[0] < 0 else seen[0], 0 if seen[0] < 0 else WAIT_S)
        except RefusedError as error:
            if error.code != "unreachable" or seen[0] < 0:
                raise
            if is_there:
                print(f"tureen beta: {error}: trying again", file=sys.stderr)
            is_there = False
            time.sleep(RETRY_S)
            continue
        is_there = True
        now = (state["revision"], state["store"]["is_reachable"])
        if now != seen:
            seen = now
            print(json.dumps(state) if options.json else format_state(state), flush=True)


def _done(state: dict[str, Any], options: argparse.Namespace) -> int:
    print(json.dumps(state) if options.json else format_state(state))
    return 0


def _agreed(state: dict[str, Any], would_be: dict[str, Any]) -> bool:
    """Show what is and what would be, and ask."""
    for when, shown_state in (("now ", state), ("then", would_be)):
        print("\n".join((f"{when}      {format_default(shown_state)}", *_rules(shown_state))))
    if not sys.stdin.isatty():
        print("tureen beta: nobody can be asked here: give --yes", file=sys.stderr)
        return False
    try:
        return input("Change it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def format_state(state: dict[str, Any]) -> str:
    """What is in force, for people."""
    lines = [format_default(state)]
    if state["changed"] is not None:
        changed = state["changed"]
        lines.append(f"          {changed['at'][:19]}Z by {changed['who']}: {changed['action']}, “{changed['reason']}”")
    lines += _rules(state)
    followed = ", ".join(f"{worker['worker']} at {worker['revision']}" for worker in state["workers"])
    lines.append(f"workers   {followed or 'none'}")
    models = {worker.get("model") for worker in state["workers"]} - {None}  # an earlier version's server names none
    if len(models) > 1:
        served = ", ".join(f"{worker['worker']} serves {worker['model']}" for worker in state["workers"])
        lines.append(f"models    differ: {served}; the accuracy above is of {' '.join(state['model'].values())}")
    if not state["store"]["is_reachable"]:
        lines.append(f"store     unreachable since {state['store']['unreachable_since']}: this is what was last known")
    return "\n".join(lines)


def _rules(state: dict[str, Any]) -> list[str]:
    """What holds beside the default β, and what is planned."""
    choice = f"from {state['beta_min']:g} to {state['beta_max']:g}" if state["clients_may_choose"] else "nothing"
    lines = [f"clients   choose {choice}"]
    lines += [f"policy    {name} → {beta:g}" for name, beta in state["policies"].items()]
    if state["canary"] is not None:
        lines.append(f"canary    {format_canary(state['canary'])}")
    return [*lines, *(f"planned   {format_plan(plan)}" for plan in state["pending"])]


def format_default(state: dict[str, Any]) -> str:
    """The default β and what it promises, in a line."""
    beta = "none, the model has one token" if state["default_beta"] is None else f"{state['default_beta']:g}"
    text = f"revision {state['revision']}: default β {beta} ({state['default_beta_source']})"
    expected = state["expected"]
    if expected is None:
        return text
    clean, robust = (
        f"{100 * share['value']:.1f} % ({100 * share['low']:.1f}–{100 * share['high']:.1f})"
        for share in (expected["clean"], expected["robust"])
    )
    attack = f"{expected['attack']}, ε = {expected['epsilon_255']:g}/255, n = {expected['n']}"
    between = "; between two measured β" if expected["interpolated"] else ""
    return f"{text}, clean accuracy {clean}, robust {robust} under {attack}{between}"


def _beta(text: str) -> float | str:
    return SERVERS_OWN if text == SERVERS_OWN else beta_argument(text)


def _time(text: str) -> str:
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no time: give one such as 2027-01-31T08:00:00Z")


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _revision(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no revision: see `tureen beta history`")
    return int(text)


def _policy(text: str) -> tuple[str, float | None]:
    name, separator, beta = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is no policy: give NAME=β, such as uploads=0.9")
    return name, beta_argument(beta) if beta else None


def _canary(text: str) -> dict[str, float]:
    """Empty for none."""
    if text == "none":
        return {}
    beta, _, share = text.partition(":")
    try:
        return {"beta": parse_beta(beta), "share": float(share)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no canary: give β:SHARE, such as 0.9:0.1, or none") from None


def _duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give one such as 90s, 30m, 1h or 2d")
    return int(match[1]) * _SECONDS[match[2]]
