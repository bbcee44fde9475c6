"""`tureen beta`: reads and changes the operator's settings of a running service from a terminal."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import datetime
from typing import Any

from serve.commands.admin_client import AdminClient, RefusedError
from serve.commands.options import listener_options
from serve.control.revision_diff import format_canary, format_plan, format_policy
from tureen.arguments import beta_argument, strength_argument
from tureen.commands.report import NORM_SYMBOLS
from tureen.tokens import parse_beta, parse_mix

WAIT_S = 30.0
RETRY_S = 2.0
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EXIT_NOT_CHANGED = 1
SERVER_DEFAULT = "server"


def beta(arguments: list[str]) -> int:
    """Runs `tureen beta`. arguments: those after `tureen beta`. Returns 0, or 1 if the operator confirmed no change.

    Raises RefusedError if the server refuses a request or is unreachable.
    """
    options = _parser().parse_args(arguments)
    client = AdminClient(options.url, options.token, options.state_dir)
    run = {"get": _get, "set": _set, "history": _history, "rollback": _rollback, "cancel": _cancel, "watch": _watch}
    status: int = run[options.command](client, options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen beta",
        description="Show and change the default β of a running service, and what clients may choose.",
        epilog='example: tureen beta set 0.8 --reason "attack on uploads" --for 1h',
    )
    common = listener_options()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("get", parents=[common], help="show the settings in force and the planned changes")
    change = commands.add_parser("set", parents=[common], help="change the default β, or what clients may choose")
    default = change.add_mutually_exclusive_group()
    default.add_argument(
        "beta", nargs="?", type=_default_argument, help="0 to 1, clean or robust; server: the default of the server"
    )
    default.add_argument(
        "--strength",
        type=strength_argument,
        help="0 (clean mode) to 1 (robust mode); the server stores the β of the model that it serves now, with --at "
        "too",
    )
    change.add_argument(
        "--min", dest="beta_min", type=beta_argument, metavar="β", help="lowest β that clients may choose"
    )
    change.add_argument(
        "--max", dest="beta_max", type=beta_argument, metavar="β", help="highest β that clients may choose"
    )
    change.add_argument(
        "--clients-may-choose", choices=("yes", "no"), help="no: a request that chooses β or a policy gets 403"
    )
    change.add_argument(
        "--policy",
        dest="policies",
        type=_policy_argument,
        action="append",
        metavar="NAME=β",
        help="set a policy: a β, or a mix such as fog:0.7,robust:0.3; NAME= removes it; NAME=MIX@0:0.5 lets clients "
        "whose API key has this policy choose β from 0 to 0.5",
    )
    change.add_argument(
        "--canary",
        type=_canary_argument,
        metavar="β:SHARE",
        help="0.9:0.1 gives β 0.9 to a tenth of the requests; none ends the canary",
    )
    when = change.add_mutually_exclusive_group()
    when.add_argument(
        "--for",
        dest="ttl_s",
        type=_duration_argument,
        metavar="TIME",
        help="revert after this time: 90s, 30m, 1h or 2d",
    )
    when.add_argument(
        "--at", type=_time_argument, metavar="TIME", help="change at this time, such as 2027-01-31T08:00:00Z"
    )
    change.add_argument(
        "--over",
        dest="ramp_s",
        type=_duration_argument,
        metavar="TIME",
        help="change in ten steps over this time; they are even in β, or with --strength in strength",
    )
    history = commands.add_parser("history", parents=[common], help="show who changed what, when and why")
    history.add_argument(
        "--limit", type=_limit_argument, default=20, help="number of revisions, 1 to 1000 (default: %(default)s)"
    )
    history.add_argument("--before", type=_revision_argument, metavar="REVISION", help="only revisions before this one")
    history.add_argument("--verify", action="store_true", help="check the hashes of the whole history")
    rollback = commands.add_parser(
        "rollback", parents=[common], help="restore the settings of an earlier revision, as a new revision"
    )
    rollback.add_argument("revision", type=_revision_argument)
    cancel = commands.add_parser("cancel", parents=[common], help="cancel a planned change")
    cancel.add_argument("id", help="id of the planned change, from `tureen beta get`")
    for command in (change, rollback, cancel):
        command.add_argument("--reason", required=True, help="reason, for the history")
    for command in (change, rollback):
        command.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    commands.add_parser("watch", parents=[common], help="show each change when it happens, until Ctrl-C")
    return parser


def _get(client: AdminClient, options: argparse.Namespace) -> int:
    state = client.state()
    print(json.dumps(state) if options.json else format_state(state))
    return 0


def _set(client: AdminClient, options: argparse.Namespace) -> int:
    change = _change(options)
    state = client.state()
    after = client.change(state["revision"], change, dry_run=True)
    if not options.yes and not _confirm(state, after):
        return EXIT_NOT_CHANGED
    return _print_state(client.change(state["revision"], change), options)


def _change(options: argparse.Namespace) -> dict[str, Any]:
    names = ("ttl_s", "ramp_s", "at", "beta_min", "beta_max")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.beta is not None:
        given["default_beta"] = None if options.beta == SERVER_DEFAULT else options.beta
    if options.strength is not None:
        given["default_strength"] = options.strength.value
    if options.clients_may_choose is not None:
        given["clients_may_choose"] = options.clients_may_choose == "yes"
    if options.policies is not None:
        given["policies"] = dict(options.policies)
    if options.canary is not None:
        given["canary"] = options.canary or None
    return {**given, "reason": options.reason}


def _rollback(client: AdminClient, options: argparse.Namespace) -> int:
    state = client.state()
    after = client.rollback(state["revision"], options.revision, options.reason, dry_run=True)
    if not options.yes and not _confirm(state, after):
        return EXIT_NOT_CHANGED
    return _print_state(client.rollback(state["revision"], options.revision, options.reason), options)


def _cancel(client: AdminClient, options: argparse.Namespace) -> int:
    return _print_state(client.cancel(client.state()["revision"], options.id, options.reason), options)


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
        print(f"{verified} revisions checked, each with the hash of the revision before: valid")
    return 0


def _watch(client: AdminClient, options: argparse.Namespace) -> int:
    printed = (-1, True)  # revision and reachability of the store, as last printed
    is_reachable = True
    while True:
        try:
            state = client.state(None if printed[0] < 0 else printed[0], 0 if printed[0] < 0 else WAIT_S)
        except RefusedError as error:
            if error.code != "unreachable" or printed[0] < 0:
                raise
            if is_reachable:
                print(f"tureen beta: {error}: trying again", file=sys.stderr)
            is_reachable = False
            time.sleep(RETRY_S)
            continue
        is_reachable = True
        now = (state["revision"], state["store"]["is_reachable"])
        if now != printed:
            printed = now
            print(json.dumps(state) if options.json else format_state(state), flush=True)


def _print_state(state: dict[str, Any], options: argparse.Namespace) -> int:
    print(json.dumps(state) if options.json else format_state(state))
    return 0


def _confirm(state: dict[str, Any], after: dict[str, Any]) -> bool:
    """Prints the settings before and after the change, and asks the operator. Returns whether the operator confirms.

    state, after: the settings before and after, as JSON objects. Returns False if the input is not a terminal.
    """
    for when, settings in (("now ", state), ("then", after)):
        print("\n".join((f"{when}      {format_default(settings)}", *_format_rules(settings))))
    if not sys.stdin.isatty():
        print("tureen beta: the input is not a terminal: give --yes to change without confirmation", file=sys.stderr)
        return False
    try:
        return input("Change it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def format_state(state: dict[str, Any]) -> str:
    """Returns the settings in force as text. state: the JSON object of GET /admin/beta."""
    lines = [format_default(state)]
    if state["changed"] is not None:
        changed = state["changed"]
        lines.append(f"          {changed['at'][:19]}Z by {changed['who']}: {changed['action']}, “{changed['reason']}”")
    lines += _format_rules(state)
    applied = ", ".join(f"{worker['worker']} at {worker['revision']}" for worker in state["workers"])
    lines.append(f"workers   {applied or 'none'}")
    models = {worker.get("model") for worker in state["workers"]} - {None}  # servers of earlier versions send none
    if len(models) > 1:
        served = ", ".join(f"{worker['worker']} serves {worker['model']}" for worker in state["workers"])
        lines.append(f"models    differ: {served}; the accuracy above is of {' '.join(state['model'].values())}")
    if not state["store"]["is_reachable"]:
        lines.append(
            f"store     unreachable since {state['store']['unreachable_since']}: these are the last known settings"
        )
    return "\n".join(lines)


def _format_rules(state: dict[str, Any]) -> list[str]:
    """Returns lines of text with the bounds, policies, canary and planned changes. state: as for `format_state`."""
    choice = f"from {state['beta_min']:g} to {state['beta_max']:g}" if state["clients_may_choose"] else "nothing"
    lines = [f"clients   choose {choice}"]
    lines += [f"policy    {name} → {format_policy(policy)}" for name, policy in state["policies"].items()]
    if state.get("tokens"):  # servers of earlier versions send none
        lines.append(f"tokens    {state['tokens']:,}: see `tureen tokens list`")
    if state["canary"] is not None:
        lines.append(f"canary    {format_canary(state['canary'])}")
    return [*lines, *(f"planned   {format_plan(plan)}" for plan in state["pending"])]


def format_default(state: dict[str, Any]) -> str:
    """Returns a line of text with the revision, the default β, and the strength and expected accuracy of this β.

    state: the JSON object of GET /admin/beta.
    """
    beta = "none, the model has one token" if state["default_beta"] is None else f"{state['default_beta']:g}"
    strength = state.get("default_strength")  # servers of earlier versions send none
    shown = f", strength {strength:g}" if strength is not None else ""
    text = f"revision {state['revision']}: default β {beta}{shown} ({state['default_beta_source']})"
    expected = state["expected"]
    if expected is None:
        return text
    about = "≈ " if expected["interpolated"] else ""
    clean, robust = (
        f"{about}{100 * share['value']:.1f} % ({100 * share['low']:.1f}–{100 * share['high']:.1f})"
        for share in (expected["clean"], expected["robust"])
    )
    norm = NORM_SYMBOLS[expected.get("norm", "linf")]  # servers of earlier versions send none
    attack = f"{expected['attack']}, {norm} ε = {expected['epsilon_255']:g}/255, n = {expected['n']}"
    between = "; ≈ is an estimate between two measured β" if expected["interpolated"] else ""
    failed = expected.get("failed_checks")  # servers of earlier versions send none
    doubt = f"; ! robust accuracy too high: check failed ({'; '.join(failed)})" if failed else ""
    return f"{text}, clean accuracy {clean}, robust {robust} under {attack}{between}{doubt}"


def _default_argument(text: str) -> float | str:
    return SERVER_DEFAULT if text == SERVER_DEFAULT else beta_argument(text)


def _time_argument(text: str) -> str:
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a time: give one such as 2027-01-31T08:00:00Z")


def _limit_argument(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _revision_argument(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a revision: see `tureen beta history`")
    return int(text)


def _policy_argument(text: str) -> tuple[str, float | dict[str, Any] | None]:
    name, separator, choice = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not a policy: give NAME=β, such as uploads=0.9")
    if ":" not in choice:
        return name, beta_argument(choice) if choice else None
    mix, separator, bounds = choice.partition("@")
    try:
        parse_mix(mix)
        return name, {"mix": mix, **(_bounds(bounds) if separator else {})}
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bounds(text: str) -> dict[str, float]:
    least, _, most = text.partition(":")
    return {"beta_min": parse_beta(least), "beta_max": parse_beta(most)}


def _canary_argument(text: str) -> dict[str, float]:
    """Returns the canary in the text `β:SHARE`, with the keys "beta" and "share"; an empty dictionary for "none".

    Raises ArgumentTypeError for any other text.
    """
    if text == "none":
        return {}
    beta, _, share = text.partition(":")
    try:
        return {"beta": parse_beta(beta), "share": float(share)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a canary: give β:SHARE, such as 0.9:0.1, or none") from None


def _duration_argument(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: give one such as 90s, 30m, 1h or 2d")
    return int(match[1]) * _SECONDS[match[2]]
