"""The operator's settings as values: what is in force, and what is planned. Knows nothing of stores, HTTP or images."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from tureen.tokens import CLEAN_BETA, ROBUST_BETA, parse_beta

POLICY_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
MAX_POLICIES = 100
MAX_KEYS = 1000
TIME_RULE = "a time is such as 2027-01-31T08:00:00Z"


def _number(value: object) -> float:
    """β as a number alone: in a setting for everybody, a text that looks like one is somebody's mistake."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("β is a number from 0 to 1")
    beta = parse_beta(value)
    if math.copysign(1, value) < 0:
        raise ValueError("β is a number from 0 to 1, and −0 is somebody's mistake")
    return beta


def _text(value: object) -> object:
    """A time as text alone: a number is seconds to one and milliseconds to another."""
    if not isinstance(value, str | datetime):
        raise ValueError(TIME_RULE)
    return value


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError(TIME_RULE) from None


Beta = Annotated[float, BeforeValidator(_number)]
PolicyName = Annotated[str, Field(pattern=f"^{POLICY_NAME}$")]
UtcTime = Annotated[
    AwareDatetime,
    BeforeValidator(_text),
    AfterValidator(_in_utc),
    PlainSerializer(lambda at: format_time(at), return_type=str),
]


class FrozenModel(BaseModel):
    """Base of what is stored: frozen, and nothing that is not known passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Canary(FrozenModel):
    """Another default β for a share of the traffic."""

    beta: Beta
    share: float = Field(strict=True, gt=0, lt=1, description="of the requests that take the default")


class KeyPolicy(FrozenModel):
    """What an API key stands for; the key itself is kept nowhere."""

    name: PolicyName
    policy: PolicyName


class PendingChange(FrozenModel):
    """A default β to come. A ramp is several of one id, a step each."""

    id: str
    kind: Literal["schedule", "revert", "ramp"]
    at: UtcTime
    default_beta: Beta | None = Field(description="null: the server's own default")
    who: str
    reason: str


class SettingsState(FrozenModel):
    """Everything an operator decides. β in [0, 1]; null default: the server's own, from its flag or its bundle."""

    default_beta: Beta | None = None
    beta_min: Beta = CLEAN_BETA
    beta_max: Beta = ROBUST_BETA
    clients_may_choose: bool = True
    policies: dict[PolicyName, Beta] = Field(default={}, max_length=MAX_POLICIES)
    api_keys: dict[str, KeyPolicy] = Field(default={}, max_length=MAX_KEYS, description="by the key's SHA-256")
    canary: Canary | None = None
    pending: tuple[PendingChange, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> SettingsState:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min:g} is above beta_max {self.beta_max:g}")
        canary = None if self.canary is None else self.canary.beta
        planned = [(f"the β planned for {format_time(plan.at)}", plan.default_beta) for plan in self.pending]
        for what, beta in (("default_beta", self.default_beta), ("the canary's β", canary), *planned):
            if beta is not None and not self.beta_min <= beta <= self.beta_max:
                raise ValueError(
                    f"{what} {beta:g} is outside the bounds {self.beta_min:g} to {self.beta_max:g}: change these too"
                )
        for key in self.api_keys.values():
            if key.policy not in self.policies:
                raise ValueError(f"the key {key.name} stands for the policy {key.policy}, which is none")
        return self


def format_time(at: datetime) -> str:
    """A time as it is stored and shown: UTC, to the microsecond, of one length, so that texts sort as times do."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
