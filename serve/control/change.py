"""Computes the operator's settings after a change, with pure functions.

A change of the default β may be planned. A scheduled change happens at a given time. A ramp moves β in steps. A
temporary default ends with a revert to the earlier default.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StringConstraints, ValidationError, model_validator

from serve.control.settings_state import (
    Beta,
    Canary,
    FrozenModel,
    KeyPolicy,
    PendingChange,
    Policy,
    PolicyName,
    SettingsState,
    UtcTime,
    format_time,
    tokens_of,
)
from serve.errors import InvalidChangeError, UnknownOperatorTokenError
from tureen.bundle.strength_curve import StrengthCurve

DAY_S = 24 * 60 * 60
MAX_TTL_S = 30 * DAY_S
MAX_RAMP_S = 7 * DAY_S
MAX_AHEAD = timedelta(days=366)
MAX_PENDING = 200
RAMP_DIGITS = 4  # decimals of β in the steps of a ramp that is even in β


def _one_line(text: str) -> str:
    """Returns the text unchanged.

    Raises ValueError if it has a line end, a control character or a character that changes the direction of text.
    """
    if not all(character.isprintable() or unicodedata.category(character) == "Zs" for character in text):
        raise ValueError("1 to 500 characters on one line, without control characters")
    return text


Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(_one_line)
]
WholeNumber = Annotated[int, Field(strict=True)]


class SettingsChange(FrozenModel):
    """A change that an operator requests. A setting that is not given keeps its value."""

    reason: Reason = Field(description="1 to 500 characters on one line, for the history")
    default_beta: Beta | None = Field(
        default=None, description="a number from 0 to 1, or null: the default of the server"
    )
    default_strength: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None, description="a number from 0 to 1, in place of default_beta; the served model maps it to β"
    )
    beta_min: Beta = Field(default=0.0, description="a number from 0 to 1")
    beta_max: Beta = Field(default=1.0, description="a number from 0 to 1")
    clients_may_choose: StrictBool = Field(default=True, description="true or false")
    policies: dict[PolicyName, Policy | None] = Field(
        default={},
        description='a number from 0 to 1, or {"mix": "fog:0.7,robust:0.3"} with or without beta_min and beta_max, for '
        "each name of a-z, 0-9, - and _; null removes the policy",
    )
    canary: Canary | None = Field(default=None, description='{"beta": 0 to 1, "share": between 0 and 1}, or null')
    ttl_s: WholeNumber | None = Field(
        default=None,
        ge=1,
        le=MAX_TTL_S,
        description=f"whole seconds, 1 to {MAX_TTL_S}, after which default_beta reverts",
    )
    ramp_s: WholeNumber | None = Field(
        default=None,
        ge=10,
        le=MAX_RAMP_S,
        description=f"whole seconds, 10 to {MAX_RAMP_S}, over which default_beta moves",
    )
    ramp_steps: WholeNumber = Field(default=10, ge=2, le=100, description="a whole number, 2 to 100")
    at: UtcTime | None = Field(default=None, description="when default_beta is to change, such as 2027-01-31T08:00:00Z")

    @model_validator(mode="after")
    def _is_one_change(self) -> SettingsChange:
        given = self.model_fields_set - {"reason"}
        if not given - {"ttl_s", "ramp_s", "ramp_steps", "at"}:
            raise ValueError("the change is empty: give default_beta, a bound, or another setting")
        defaults = given & {"default_beta", "default_strength"}
        if len(defaults) > 1:
            raise ValueError("default_beta and default_strength exclude each other: give one of them")
        if "default_strength" in given and self.default_strength is None:
            raise ValueError("default_strength is null: give a number from 0 to 1, or default_beta null")
        timed = [name for name in ("ttl_s", "ramp_s", "at") if getattr(self, name) is not None]
        if timed and not defaults:
            raise ValueError(f"{timed[0]} is for default_beta, which is not given")
        if self.at is not None and (len(timed) > 1 or given - defaults - {"at"}):
            raise ValueError("at is for default_beta only: remove ttl_s, ramp_s and other settings")
        if self.ramp_s is not None and self.default_beta is None and self.default_strength is None:
            raise ValueError("ramp_s needs a default_beta to move to")
        if self.ramp_s is not None and self.ttl_s is not None and self.ttl_s <= self.ramp_s:
            raise ValueError("ttl_s ends before the ramp does")
        return self


def parse_change(document: Any) -> SettingsChange:
    """Returns the change in a parsed JSON document.

    Raises InvalidChangeError if the document is not a valid change. The error names the first invalid field and the
    rule of the field.
    """
    try:
        return SettingsChange.model_validate(document)
    except ValidationError as error:
        raise InvalidChangeError(describe_first_error(error, SettingsChange)) from None


def _resolve_strength(change: SettingsChange, curve: StrengthCurve, state: SettingsState) -> SettingsChange:
    """Returns the change with default_beta in place of default_strength. `curve` maps the strength to that β.

    state: its bounds apply if the change gives none. A strength that is shown for a bound becomes exactly that bound. A
    change without default_strength is returned unchanged.
    """
    if change.default_strength is None:
        return change
    least, most = (
        getattr(change if name in change.model_fields_set else state, name) for name in ("beta_min", "beta_max")
    )
    given = change.model_dump(exclude_unset=True, exclude={"default_strength"})
    return SettingsChange.model_validate({**given, "default_beta": curve.beta_at(change.default_strength, least, most)})


def apply_change(
    state: SettingsState, change: SettingsChange, *, who: str, now: datetime, in_force: float, curve: StrengthCurve
) -> SettingsState:
    """Returns the state after a change.

    who: name of the operator's credential. in_force: the default β that the server uses before the change, in [0, 1]; a
    ramp starts at this β. curve: of the served model; it maps default_strength to β. If the change gives
    default_strength, the steps of a ramp are even in strength. If the change gives default_beta, they are even in β.

    A new default β removes the planned steps of ramps and the planned reverts, and keeps scheduled changes. A temporary
    default reverts to the default before it. If the temporary default replaces a ramp or another temporary default, it
    reverts to the β at which the replaced change would have ended.

    Raises InvalidChangeError if `at` is not within a year from `now`, if the settings after the change contradict each
    other, or if more than MAX_PENDING changes are planned.
    """
    strength, change = change.default_strength, _resolve_strength(change, curve, state)
    given = change.model_fields_set
    update: dict[str, Any] = {
        name: getattr(change, name)
        for name in ("beta_min", "beta_max", "clients_may_choose", "canary")
        if name in given
    }
    if "policies" in given:
        merged = {**state.policies, **change.policies}
        update["policies"] = {name: beta for name, beta in merged.items() if beta is not None}
    if "default_beta" in given:
        ramp = [] if change.ramp_s is None else _ramp(change, in_force, strength, curve)
        plans = _plans(state, change, who, now, ramp)
        if change.at is not None:
            update["pending"] = (*state.pending, *plans)
        else:
            update["pending"] = (*_scheduled(state), *plans)
            if change.ramp_s is None:
                update["default_beta"] = change.default_beta
    return _validated_copy(state, update)


def _plans(
    state: SettingsState, change: SettingsChange, who: str, now: datetime, ramp: Sequence[float]
) -> list[PendingChange]:
    """Returns the planned changes that `change` adds to the state, in the order of time.

    With `at`, this is one scheduled change. With `ramp_s`, these are the steps of a ramp. With `ttl_s`, this is the
    revert that ends a temporary default. With both `ramp_s` and `ttl_s`, these are the steps and then the revert.
    Without any of them, the list is empty, because the change is immediate and permanent.

    who: name of the operator's credential, stored in each planned change. ramp: the β of each step. Raises
    InvalidChangeError if `change.at` is not within a year from `now`.
    """
    plan_id = secrets.token_hex(4)

    def plan(kind: str, at: datetime, beta: float | None) -> PendingChange:
        return PendingChange.model_validate(
            {"id": plan_id, "kind": kind, "at": at, "default_beta": beta, "who": who, "reason": change.reason}
        )

    if change.at is not None:
        if not now < change.at <= now + MAX_AHEAD:
            raise InvalidChangeError(f"at is {format_time(change.at)}; give a time from now to a year ahead")
        return [plan("schedule", change.at, change.default_beta)]
    plans = []
    if change.ramp_s is not None:
        for step, beta in enumerate(ramp, start=1):
            plans.append(plan("ramp", now + timedelta(seconds=change.ramp_s * step / len(ramp)), beta))
    if change.ttl_s is not None:
        plans.append(plan("revert", now + timedelta(seconds=change.ttl_s), _default_after_plans(state)))
    return plans


def _ramp(change: SettingsChange, start: float, strength: float | None, curve: StrengthCurve) -> list[float]:
    """Returns the β of each step of a ramp from β `start` to the default_beta of the change, the last step.

    strength: the default_strength that the operator gave; the steps are even in strength. None: the steps are even in
    β, and rounded to RAMP_DIGITS decimals, such as 0.44 for 0.44000000000000006.
    """
    end = change.default_beta
    assert end is not None
    shares = [step / change.ramp_steps for step in range(1, change.ramp_steps)]
    if strength is None:
        betas = [round(start + (end - start) * share, RAMP_DIGITS) for share in shares]
    else:
        first = curve.strength_at(start)
        betas = [curve.beta_at(first + (strength - first) * share) for share in shares]
    least, most = sorted((start, end))
    return [*(min(max(beta, least), most) for beta in betas), end]


def _default_after_plans(state: SettingsState) -> float | None:
    """Returns the default β after all planned ramps and reverts; None stands for the default of the server.

    It is the β of the last planned revert, or else of the last ramp step, or else the present default β. Ignores
    scheduled changes.
    """
    in_progress = [plan for plan in state.pending if plan.kind != "schedule"]
    reverts = [plan for plan in in_progress if plan.kind == "revert"]
    last = max(reverts or in_progress, key=lambda plan: plan.at, default=None)
    return state.default_beta if last is None else last.default_beta


def roll_back(state: SettingsState, earlier: SettingsState) -> SettingsState:
    """Returns the settings `earlier`, but with the API keys of `state` and without planned changes.

    The policies of these API keys, and the tokens of these policies, are those of `state` too. Raises
    InvalidChangeError if the result has too many policies.
    """
    policies = {key.policy: state.policies[key.policy] for key in state.api_keys.values()}
    tokens = {name: state.tokens[name] for policy in policies.values() for name in tokens_of(policy)}
    kept = {
        "pending": (),
        "api_keys": state.api_keys,
        "policies": earlier.policies | policies,
        "tokens": earlier.tokens | tokens,
    }
    return _validated_copy(earlier, kept)


def add_token(state: SettingsState, name: str, sha256: str, *, limit: int, may_replace: bool) -> SettingsState:
    """Returns the state with an additional token. sha256: of the token file.

    limit: maximum of tokens. may_replace: whether another token may have the name; it is then replaced. Raises
    InvalidChangeError if the name is taken, or if there are too many tokens.
    """
    if state.tokens.get(name, sha256) != sha256 and not may_replace:
        raise InvalidChangeError(f"the token {name} exists already: remove it first, or replace it with replace=true")
    if name not in state.tokens and len(state.tokens) >= limit:
        raise InvalidChangeError(f"there are {len(state.tokens):,} tokens, which is the limit: remove some")
    return _validated_copy(state, {"tokens": {**state.tokens, name: sha256}})


def remove_token(state: SettingsState, name: str) -> SettingsState:
    """Returns the state without the token.

    Raises UnknownOperatorTokenError if it does not exist, and InvalidChangeError if a policy needs it.
    """
    if name not in state.tokens:
        raise UnknownOperatorTokenError(name)
    if users := sorted(policy for policy, choice in state.policies.items() if name in tokens_of(choice)):
        raise InvalidChangeError(f"the token {name} is in use by the policy {users[0]}: change the policy first")
    return _validated_copy(state, {"tokens": {other: sha for other, sha in state.tokens.items() if other != name}})


def cancel_plan(state: SettingsState, plan_id: str) -> SettingsState:
    """Returns the state without the planned changes whose id is `plan_id`.

    All steps of a ramp, and its revert, have the same id. Raises InvalidChangeError if no planned change has this id.
    """
    kept = tuple(plan for plan in state.pending if plan.id != plan_id)
    if len(kept) == len(state.pending):
        raise InvalidChangeError("no planned change has this id: see pending")
    return _validated_copy(state, {"pending": kept})


def add_api_key(state: SettingsState, digest: str, key: KeyPolicy) -> SettingsState:
    """Returns the state with an additional API key. digest: the SHA-256 of the key, hexadecimal.

    Raises InvalidChangeError if the name of the key is taken, or if its policy does not exist.
    """
    if any(known.name == key.name for known in state.api_keys.values()):
        raise InvalidChangeError(f"the key {key.name} exists already: remove it first")
    return _validated_copy(state, {"api_keys": {**state.api_keys, digest: key}})


def remove_api_key(state: SettingsState, name: str) -> SettingsState:
    """Returns the state without the API key of this name. Raises InvalidChangeError if no key has the name."""
    kept = {digest: key for digest, key in state.api_keys.items() if key.name != name}
    if len(kept) == len(state.api_keys):
        raise InvalidChangeError("there is no key of this name")
    return _validated_copy(state, {"api_keys": kept})


def apply_next_due(state: SettingsState, now: datetime) -> tuple[SettingsState, PendingChange] | None:
    """Returns the state after the earliest planned change that is due, and that change; None if no change is due.

    If several changes are due, the caller repeats the call until the result is None. The final state does not depend on
    how late the calls are.
    """
    plan = min(state.pending, key=lambda plan: plan.at, default=None)
    if plan is None or plan.at > now:
        return None
    kept = [other for other in state.pending if other is not plan]
    if plan.kind != "ramp":  # the change replaces ramps and reverts in progress
        kept = [other for other in kept if other.kind == "schedule"]
    return state.model_copy(update={"default_beta": plan.default_beta, "pending": tuple(kept)}), plan


def next_due_time(state: SettingsState) -> datetime | None:
    """Returns the time of the next planned change, or None if no change is planned."""
    return min((plan.at for plan in state.pending), default=None)


def _scheduled(state: SettingsState) -> list[PendingChange]:
    return [plan for plan in state.pending if plan.kind == "schedule"]


def _validated_copy(state: SettingsState, update: dict[str, Any]) -> SettingsState:
    if len(update.get("pending", ())) > MAX_PENDING:
        raise InvalidChangeError(f"more than {MAX_PENDING} changes are planned: cancel some")
    try:
        return SettingsState.model_validate({**dict(state), **update})
    except ValidationError as error:
        raise InvalidChangeError(describe_first_error(error, SettingsState)) from None


def describe_first_error(error: ValidationError, model: type[FrozenModel]) -> str:
    """Returns a message with the name of the first invalid field of `model` and the rule of the field.

    The message contains no text of the validation library.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    name = str(first["loc"][0])[:40] if first["loc"] else ""
    if not name:
        return str(cause) if cause is not None else "the body must be a JSON object of settings"
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}" if len(first["loc"]) == 1 else f"{name} has an unknown field"
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{name} is missing"
    field = model.model_fields.get(name)
    rule = (
        cause if cause is not None else (field.description if field and field.description else "the value is not valid")
    )
    return f"{name}: {rule}"
