"""Describes in words what a revision of the operator's settings changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yields a line of text for each changed setting.

    before, after: the settings of two revisions, in the JSON form of `GET /admin/beta/history`.
    """
    if before["default_beta"] != after["default_beta"]:
        new_default = _format_default(after["default_beta"]).removeprefix("β ")
        yield f"{_format_default(before['default_beta'])} → {new_default}"
    for name, what in (("beta_min", "least β"), ("beta_max", "greatest β")):
        if before[name] != after[name]:
            yield f"{what} {before[name]:g} → {after[name]:g}"
    if before["clients_may_choose"] != after["clients_may_choose"]:
        yield "clients may choose" if after["clients_may_choose"] else "clients may not choose"
    for name in sorted(before["policies"].keys() | after["policies"].keys()):
        old, new = (side["policies"].get(name) for side in (before, after))
        if old != new:
            yield f"policy {name} {format_policy(old)} → {format_policy(new)}"
    if before["canary"] != after["canary"]:
        yield f"canary {format_canary(before['canary'])} → {format_canary(after['canary'])}"
    old_keys, new_keys = ({key["name"]: key["policy"] for key in side["keys"]} for side in (before, after))
    yield from (f"key {name} for {new_keys[name]} made" for name in sorted(new_keys.keys() - old_keys.keys()))
    yield from (f"key {name} removed" for name in sorted(old_keys.keys() - new_keys.keys()))
    planned = [plan for plan in after["pending"] if plan not in before["pending"]]
    if planned:
        yield f"planned: {format_plan(planned[-1])}"


def describe_token_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yields a line of text for each token that was added, replaced or removed. before, after: SHA-256 by name."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield f"token {name} added"
        elif name not in after:
            yield f"token {name} removed"
        elif before[name] != after[name]:
            yield f"token {name} replaced"


def format_policy(policy: float | dict[str, Any] | None) -> str:
    """Returns a policy as text: its β, or its mix with the bounds of clients; "none" if there is no policy."""
    if not isinstance(policy, dict):
        return "none" if policy is None else f"{policy:g}"
    bounds = "" if policy["beta_min"] is None else f", β from {policy['beta_min']:g} to {policy['beta_max']:g}"
    return f"{policy['mix']}{bounds}"


def format_canary(canary: dict[str, float] | None) -> str:
    """Returns the share and the β of a canary as text, such as "10 % at β 0.7"; "none" if there is no canary."""
    return "none" if canary is None else f"{100 * canary['share']:g} % at β {canary['beta']:g}"


def format_plan(plan: dict[str, Any]) -> str:
    """Returns the time, kind, β and id of a planned change as text."""
    return f"{plan['at'][:19]}Z {plan['kind']} to {_format_default(plan['default_beta'])}, id {plan['id']}"


def _format_default(beta: float | None) -> str:
    return "the server's default β" if beta is None else f"β {beta:g}"
