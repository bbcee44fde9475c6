"""Which β an image gets: the request's, a policy's, a canary's, the operator's, or the bundle's. Pure.

Whatever a client chooses by itself, or gets by choosing nothing, lies within the operator's bounds; what an API key
stands for was the operator's choice, and may lie outside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from serve.control.settings_state import KeyPolicy, SettingsState
from serve.errors import (
    BetaOutOfBoundsError,
    ChoiceNotAllowedError,
    UnknownApiKeyError,
    UnknownPolicyError,
)
from tureen.errors import SingleTokenError

BetaSource = Literal["request", "policy", "key", "canary", "operator", "bundle"]


@dataclass(frozen=True)
class BetaChoice:
    """The β of one image, fixed at its request's admission: where it comes from, and at which revision."""

    beta: float | None  # None: the model has one token
    source: BetaSource
    revision: int


@dataclass(frozen=True)
class ClientIdentity:
    """What a request says of itself beside its β. sticky: whoever says the same is on the same side of a canary."""

    policy: str | None = None
    api_key: str | None = None
    sticky: str = ""


ANONYMOUS = ClientIdentity()


@dataclass(frozen=True)
class ActiveSettings:
    """What decides, as of one moment. own_default: of the server, without an operator; None: the model has one token.

    own_source: "operator" where it is the server's setting, else "bundle".
    """

    own_default: float | None
    own_source: BetaSource
    revision: int = 0
    state: SettingsState = field(default_factory=SettingsState)

    @property
    def default(self) -> BetaChoice:
        """The choice for whoever chooses nothing, canaries aside."""
        if self.own_default is None:
            return BetaChoice(None, "bundle", self.revision)
        state = self.state
        if state.default_beta is not None:
            return BetaChoice(state.default_beta, "operator", self.revision)
        within = min(max(self.own_default, state.beta_min), state.beta_max)
        return BetaChoice(within, self.own_source if within == self.own_default else "operator", self.revision)

    def choose(self, beta: float | None, asker: ClientIdentity = ANONYMOUS) -> BetaChoice:
        """The choice for an image that names this β, or none, in a request of that asker.

        Raises SingleTokenError, ChoiceNotAllowedError, BetaOutOfBoundsError, UnknownPolicyError or UnknownApiKeyError.
        """
        if self.own_default is None:
            if beta is not None or asker.policy is not None:
                raise SingleTokenError
            return self.default
        key = self._key_of(asker)
        if beta is not None:
            return self._chosen_by_client(beta, "request")
        if asker.policy is not None:
            if asker.policy not in self.state.policies:
                raise UnknownPolicyError
            return self._chosen_by_client(self.state.policies[asker.policy], "policy")
        if key is not None:
            return BetaChoice(self.state.policies[key.policy], "key", self.revision)
        canary = self.state.canary
        if canary is not None and canary_position(asker.sticky) < canary.share:
            return BetaChoice(canary.beta, "canary", self.revision)
        return self.default

    def check(self, betas: list[float]) -> None:
        """Whether a client may ask for all of these at a time; raises ChoiceNotAllowedError or BetaOutOfBoundsError."""
        for beta in betas:
            self._chosen_by_client(beta, "request")

    def _key_of(self, asker: ClientIdentity) -> KeyPolicy | None:
        if asker.api_key is None or not self.state.api_keys:
            return None
        key = self.state.api_keys.get(hashlib.sha256(asker.api_key.encode()).hexdigest())
        if key is None:
            raise UnknownApiKeyError
        return key

    def _chosen_by_client(self, beta: float, source: BetaSource) -> BetaChoice:
        state = self.state
        if not state.clients_may_choose:
            raise ChoiceNotAllowedError
        if not state.beta_min <= beta <= state.beta_max:
            raise BetaOutOfBoundsError(beta, state.beta_min, state.beta_max)
        return BetaChoice(beta, source, self.revision)


def canary_position(sticky: str) -> float:
    """Where in [0, 1) somebody stands for good: with a growing share of a canary nobody leaves it again."""
    return int.from_bytes(hashlib.sha256(b"canary " + sticky.encode()).digest()[:7], "big") / 2**56
