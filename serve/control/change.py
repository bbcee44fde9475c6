"""What changes the operator's settings: pure functions from one state to the next, and when the next is due."""

from __future__ import annotations

import secrets
import unicodedata
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StringConstraints, ValidationError, model_validator

from serve.control.settings_state import (
    Beta,
    Canary,
    FrozenModel,
    KeyPolicy,
    PendingChange,
    PolicyName,
    SettingsState,
    UtcTime,
    format_time,
)
from serve.errors import InvalidChangeError

DAY_S = 24 * 60 * 60
MAX_TTL_S = 30 * DAY_S
MAX_RAMP_S = 7 * DAY_S
MAX_AHEAD = timedelta(days=366)
MAX_PENDING = 200
BETA_DIGITS = 4  # of the steps of a ramp


def _one_line(text: str) -> str:
    """Nothing that a terminal obeys or hides: no control characters, no turning of the direction, no line ends."""
    if not all(character.isprintable() or unicodedata.category(character) == "Zs" for character in text):
        raise ValueError("1 to 500 characters on one line, without control characters")
    return text


Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(_one_line)
]
WholeNumber = Annotated[int, Field(strict=True)]


class SettingsChange(FrozenModel):
    """What an operator wants different; what is left out stays."""

    reason: Reason = Field(description="1 to 500 characters on one line, for whoever reads the history")
    default_beta: Beta | None = Field(default=None, description="a number from 0 to 1, or null: the server's own")
    beta_min: Beta = Field(default=0.0, description="a number from 0 to 1")
    beta_max: Beta = Field(default=1.0, description="a number from 0 to 1")
    clients_may_choose: StrictBool = Field(default=True, description="true or false")
    policies: dict[PolicyName, Beta | None] = Field(
        default={}, description="a number from 0 to 1 for each name of a-z, 0-9, - and _; null takes the policy away"
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
            raise ValueError("nothing is to change: give default_beta, a bound, or another setting")
        timed = [name for name in ("ttl_s", "ramp_s", "at") if getattr(self, name) is not None]
        if timed and "default_beta" not in given:
            raise ValueError(f"{timed[0]} is for default_beta, which is not given")
        if self.at is not None and (len(timed) > 1 or given - {"default_beta", "at"}):
            raise ValueError("at is for default_beta alone: without ttl_s, ramp_s or another setting")
        if self.ramp_s is not None and self.default_beta is None:
            raise ValueError("ramp_s needs a default_beta to move to")
        if self.ramp_s is not None and self.ttl_s is not None and self.ttl_s <= self.ramp_s:
            raise ValueError("ttl_s ends before the ramp does")
        return self


def parse_change(document: Any) -> SettingsChange:
    """The change in a JSON document; raises InvalidChangeError with field and rule, in our own words."""
    try:
        return SettingsChange.model_validate(document)
    except ValidationError as error:
        raise InvalidChangeError(describe_first_error(error, SettingsChange)) from None


def apply_change(
    state: SettingsState, change: SettingsChange, *, who: str, now: datetime, in_force: float
) -> SettingsState:
    """The state after the change. in_force: the default β that requests get before it, where a ramp begins.

    Another default β takes the place of ramps and reverts under way; what is scheduled stays. One for a while, made
    while another for a while holds or moves, reverts to where that would have ended. Raises InvalidChangeError.
    """
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
        plans = _plans(state, change, who, now, in_force)
        if change.at is not None:
            update["pending"] = (*state.pending, *plans)
        else:
            update["pending"] = (*_scheduled(state), *plans)
            if change.ramp_s is None:
                update["default_beta"] = change.default_beta
    return _replaced(state, update)


def _plans(
    state: SettingsState, change: SettingsChange, who: str, now: datetime, in_force: float
) -> list[PendingChange]:
    """What the change leaves to be done later."""
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
        assert change.default_beta is not None
        steps, target = change.ramp_steps, change.default_beta
        for step in range(1, steps + 1):
            beta = (
                target if step == steps else _rounded(in_force + (target - in_force) * step / steps, in_force, target)
            )
            plans.append(plan("ramp", now + timedelta(seconds=change.ramp_s * step / steps), beta))
    if change.ttl_s is not None:
        plans.append(plan("revert", now + timedelta(seconds=change.ttl_s), _lasting(state)))
    return plans


def _rounded(beta: float, start: float, end: float) -> float:
    """β for people to read, 0.44 for 0.44000000000000006, not outside its two ends."""
    return min(max(round(beta, BETA_DIGITS), min(start, end)), max(start, end))


def _lasting(state: SettingsState) -> float | None:
    """The default β once what is under way for a while, or step by step, has come to its end."""
    under_way = [plan for plan in state.pending if plan.kind != "schedule"]
    reverts = [plan for plan in under_way if plan.kind == "revert"]
    last = max(reverts or under_way, key=lambda plan: plan.at, default=None)
    return state.default_beta if last is None else last.default_beta


def roll_back(state: SettingsState, earlier: SettingsState) -> SettingsState:
    """The settings of an earlier revision, with nothing planned. API keys, and the policies they stand for, stay."""
    needed = {key.policy: state.policies[key.policy] for key in state.api_keys.values()}
    return earlier.model_copy(update={"pending": (), "api_keys": state.api_keys, "policies": needed | earlier.policies})


def cancel_plan(state: SettingsState, plan_id: str) -> SettingsState:
    """Without what is planned under that id; raises InvalidChangeError where nothing is."""
    kept = tuple(plan for plan in state.pending if plan.id != plan_id)
    if len(kept) == len(state.pending):
        raise InvalidChangeError("nothing is planned under this id: see pending")
    return _replaced(state, {"pending": kept})


def add_key(state: SettingsState, digest: str, key: KeyPolicy) -> SettingsState:
    """With another API key, by the SHA-256 of it; raises InvalidChangeError where the name is taken."""
    if any(known.name == key.name for known in state.api_keys.values()):
        raise InvalidChangeError(f"there is a key {key.name} already: remove it first")
    return _replaced(state, {"api_keys": {**state.api_keys, digest: key}})


def remove_key(state: SettingsState, name: str) -> SettingsState:
    """Without that API key; raises InvalidChangeError where there is none."""
    kept = {digest: key for digest, key in state.api_keys.items() if key.name != name}
    if len(kept) == len(state.api_keys):
        raise InvalidChangeError("there is no key of this name")
    return _replaced(state, {"api_keys": kept})


def apply_next_due(state: SettingsState, now: datetime) -> tuple[SettingsState, PendingChange] | None:
    """The state once the first of what is due by now is done, and the plan that was; None where nothing is due.

    Whoever comes late does one after the other, and finds things as if each had been done in time.
    """
    plan = min(state.pending, key=lambda plan: plan.at, default=None)
    if plan is None or plan.at > now:
        return None
    kept = [other for other in state.pending if other is not plan]
    if plan.kind != "ramp":  # it takes the place of what else was under way
        kept = [other for other in kept if other.kind == "schedule"]
    return state.model_copy(update={"default_beta": plan.default_beta, "pending": tuple(kept)}), plan


def next_due_time(state: SettingsState) -> datetime | None:
    """When something is due next."""
    return min((plan.at for plan in state.pending), default=None)


def _scheduled(state: SettingsState) -> list[PendingChange]:
    return [plan for plan in state.pending if plan.kind == "schedule"]


def _replaced(state: SettingsState, update: dict[str, Any]) -> SettingsState:
    if len(update.get("pending", ())) > MAX_PENDING:
        raise InvalidChangeError(f"more than {MAX_PENDING} changes are planned: cancel some")
    try:
        return SettingsState.model_validate({**dict(state), **update})
    except ValidationError as error:
        raise InvalidChangeError(describe_first_error(error, SettingsState)) from None


def describe_first_error(error: ValidationError, model: type[FrozenModel]) -> str:
    """The field and what it may be; never the validating library's own words."""
    fault = error.errors(include_url=False, include_input=False)[0]
    cause = fault.get("ctx", {}).get("error")
    name = str(fault["loc"][0])[:40] if fault["loc"] else ""
    if not name:
        return str(cause) if cause is not None else "the body is no JSON object of settings"
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {name!r}" if len(fault["loc"]) == 1 else f"{name} has a field that it has not"
    if fault["type"] == "missing" and len(fault["loc"]) == 1:
        return f"{name} is missing"
    field = model.model_fields.get(name)
    rule = cause if cause is not None else (field.description if field and field.description else "not what it may be")
    return f"{name}: {rule}"
