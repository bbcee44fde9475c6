"""Defines the operator's settings and planned changes as validated types. Knows no store, HTTP or images."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from tureen.bundle.token_file import Sha256, TokenName
from tureen.tokens import CLEAN, CLEAN_BETA, ROBUST, ROBUST_BETA, Mix, parse_beta, parse_mix

POLICY_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
MAX_POLICIES = 1000
MAX_KEYS = 1000
TIME_RULE = "give a time such as 2027-01-31T08:00:00Z"


def _parse_beta_number(value: object) -> float:
    """Returns the value as a β. Raises ValueError if it is not a number in [0, 1], or is −0.

    A text such as "0.5" is refused, because it may be a mistake.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("β is a number from 0 to 1")
    beta = parse_beta(value)
    if math.copysign(1, value) < 0:
        raise ValueError("β is a number from 0 to 1; −0 is refused")
    return beta


def _refuse_number(value: object) -> object:
    """Returns a text or a datetime unchanged. Raises ValueError for any other value.

    A number is refused as a time, because its unit could be seconds or milliseconds.
    """
    if not isinstance(value, str | datetime):
        raise ValueError(TIME_RULE)
    return value


def _to_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError(TIME_RULE) from None


Beta = Annotated[float, BeforeValidator(_parse_beta_number)]
PolicyName = Annotated[str, Field(pattern=f"^{POLICY_NAME}$")]
UtcTime = Annotated[
    AwareDatetime,
    BeforeValidator(_refuse_number),
    AfterValidator(_to_utc),
    PlainSerializer(lambda at: format_time(at), return_type=str),
]


class FrozenModel(BaseModel):
    """Base class of all data that the store keeps or a request contains. Instances are immutable.

    Validation fails for an unknown field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Canary(FrozenModel):
    """Another default β, which applies to a share of the requests that have no β, policy or API key."""

    beta: Beta
    share: float = Field(strict=True, gt=0, lt=1, description="share of the requests without β, policy and API key")


class MixPolicy(FrozenModel):
    """A policy that is a mix of tokens, and what clients whose API key has this policy may choose.

    mix: a text for `parse_mix`, such as "fog:0.7,robust:0.3". The weights are divided by their sum. beta_min, beta_max:
    bounds of the β that such a client may give. A request with β gets (1 − β)·mix + β·robust. None: such a client
    chooses nothing.
    """

    mix: Annotated[str, AfterValidator(lambda text: _checked_mix(text))]
    beta_min: Beta | None = None
    beta_max: Beta | None = None

    @model_validator(mode="after")
    def _has_both_bounds(self) -> MixPolicy:
        least, most = self.beta_min, self.beta_max
        if (least is None) != (most is None) or (least is not None and most is not None and least > most):
            raise ValueError("give both beta_min and beta_max, or neither; beta_min is not above beta_max")
        return self

    @cached_property
    def choice(self) -> float | Mix:
        """The mix. It is a β if it has no token but clean and robust."""
        return parse_mix(self.mix)

    @property
    def tokens(self) -> set[str]:
        """The names of the tokens in the mix, without clean and robust."""
        names = {name for name, _ in self.choice.weights} if isinstance(self.choice, Mix) else set()
        return names - {CLEAN, ROBUST}


def _checked_mix(text: str) -> str:
    parse_mix(text)
    return text


Policy = Annotated[
    Annotated[Beta, Tag("β")] | Annotated[MixPolicy, Tag("mix")],
    Discriminator(lambda value: "mix" if isinstance(value, dict | MixPolicy) else "β"),  # for an error of one of both
]


class KeyPolicy(FrozenModel):
    """The name of an API key, and the policy for requests with this key. The key itself is not stored."""

    name: PolicyName
    policy: PolicyName


class PendingChange(FrozenModel):
    """A planned change of the default β.

    kind: "schedule" is a change at a given time, "ramp" a step of a gradual change, and "revert" the end of a temporary
    default. All steps of a ramp, and its revert, have the same id. at: time of the change. who, reason: the operator's
    credential and the reason, both from the change that planned this one.
    """

    id: str
    kind: Literal["schedule", "revert", "ramp"]
    at: UtcTime
    default_beta: Beta | None = Field(description="null: the default of the server")
    who: str
    reason: str


class SettingsState(FrozenModel):
    """The operator's settings. Every β is in [0, 1].

    default_beta: None means the β of the option --default-beta, or the β of the bundle if the option is not given.
    beta_min, beta_max: bounds of the β that clients choose. policies: a β or a mix by name. tokens: the SHA-256 of the
    token file by the name of the token. pending: the planned changes.
    """

    default_beta: Beta | None = None
    beta_min: Beta = CLEAN_BETA
    beta_max: Beta = ROBUST_BETA
    clients_may_choose: bool = True  # whether a request may have a β, a strength or a policy
    policies: dict[PolicyName, Policy] = Field(default={}, max_length=MAX_POLICIES)
    api_keys: dict[str, KeyPolicy] = Field(default={}, max_length=MAX_KEYS, description="by SHA-256 of the key")
    canary: Canary | None = None
    pending: tuple[PendingChange, ...] = ()
    tokens: dict[TokenName, Sha256] = {}

    @cached_property
    def private_tokens(self) -> frozenset[str]:
        """The tokens in the policies of API keys. Only clients with these keys may use them."""
        return frozenset().union(*(tokens_of(self.policies[key.policy]) for key in self.api_keys.values()))

    @model_serializer(mode="wrap")
    def _without_empty_tokens(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `tokens` out if there are none, so that an earlier version of Tureen can read the settings."""
        content: dict[str, Any] = handler(self)
        if not content.get("tokens", True):
            del content["tokens"]
        return content

    @model_validator(mode="after")
    def _is_consistent(self) -> SettingsState:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min:g} is above beta_max {self.beta_max:g}")
        canary = None if self.canary is None else self.canary.beta
        planned = [(f"the β planned for {format_time(plan.at)}", plan.default_beta) for plan in self.pending]
        for what, beta in (("default_beta", self.default_beta), ("the canary's β", canary), *planned):
            if beta is not None and not self.beta_min <= beta <= self.beta_max:
                raise ValueError(
                    f"{what} {beta:g} is outside the bounds {self.beta_min:g} to {self.beta_max:g}: "
                    "change the bounds too"
                )
        for name, policy in self.policies.items():
            if missing := sorted(tokens_of(policy) - self.tokens.keys()):
                raise ValueError(f"the policy {name} has the token {missing[0]}, which no operator has added")
        for key in self.api_keys.values():
            if key.policy not in self.policies:
                raise ValueError(f"the key {key.name} has the policy {key.policy}, which does not exist")
        return self


def tokens_of(policy: float | MixPolicy) -> set[str]:
    """Returns the names of the tokens that a policy needs, without clean and robust."""
    return policy.tokens if isinstance(policy, MixPolicy) else set()


def format_time(at: datetime) -> str:
    """Returns the time in UTC as text, such as 2027-01-31T08:00:00.000000Z. Sorted texts are in the order of time."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
