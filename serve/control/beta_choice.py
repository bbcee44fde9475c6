"""Chooses the β of an image, or its mix of tokens. Pure: knows no HTTP, store or engine.

A policy is a name that an operator gave to a β. A canary is another default β for a share of the requests. β comes from
the first of these sources that exists:

1. β or mix of the request
2. policy that the request names
3. policy of the API key
4. canary, if it includes the request
5. operator's default
6. default of the server, from --default-beta or the bundle

The operator's bounds limit every β except that of an API key's policy, which the operator chose for that client. The β
of a mix is the share of its robust token. A client whose key has a mix as its policy may choose only within the bounds
of that policy. For other clients, the tokens of that policy and the policy itself do not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from serve.control.settings_state import KeyPolicy, MixPolicy, SettingsState, tokens_of
from serve.errors import (
    BetaOutOfBoundsError,
    ChoiceNotAllowedError,
    UnknownApiKeyError,
    UnknownPolicyError,
)
from tureen.bundle.manifest import Temperatures
from tureen.errors import InvalidMixError, SingleTokenError
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, Mix, move_to_robust

BetaSource = Literal["request", "policy", "key", "canary", "operator", "bundle"]


@dataclass(frozen=True)
class BetaChoice:
    """The β or the mix of one image, its source, and the revision of the settings that were in force."""

    beta: float | None  # of a mix, the share of the robust token; None: the model has one token
    source: BetaSource
    revision: int
    mix: Mix | None = None  # None: the soup of the clean and the robust token at β


@dataclass(frozen=True)
class ClientIdentity:
    """The values of a request that can influence its β: a policy name, an API key, and `sticky` for canaries."""

    policy: str | None = None  # name of a policy; None: the request names none
    api_key: str | None = None  # value of the header X-API-Key
    sticky: str = ""  # a canary includes all requests with the same value, or none of them


ANONYMOUS = ClientIdentity()


@dataclass(frozen=True)
class ActiveSettings:
    """The operator's settings in force, and the default β of the server. Chooses the β of each image."""

    server_default: float | None  # applies if no operator set a default; None: the model has one token
    server_default_source: BetaSource  # "operator" if set by --default-beta, else "bundle"
    revision: int = 0  # of `state`
    state: SettingsState = field(default_factory=SettingsState)  # what operators have set

    @property
    def default(self) -> BetaChoice:
        """The choice for a request that has no β, policy or API key, and that no canary includes."""
        if self.server_default is None:
            return BetaChoice(None, "bundle", self.revision)
        state = self.state
        if state.default_beta is not None:
            return BetaChoice(state.default_beta, "operator", self.revision)
        beta = min(max(self.server_default, state.beta_min), state.beta_max)
        is_bounded = beta != self.server_default
        return BetaChoice(beta, "operator" if is_bounded else self.server_default_source, self.revision)

    def choose(self, given: float | Mix | None, client: ClientIdentity = ANONYMOUS) -> BetaChoice:
        """Returns the β or mix of an image and its source.

        given: the β or mix given for the image or its request, or None. Does not check that the tokens of a mix exist.

        For a model with one token, raises SingleTokenError if the client gives a β or names a policy, and
        ChoiceNotAllowedError if it gives a mix and the operator allows clients no choice. API keys are not checked for
        such a model.

        For a model with two tokens, raises:
        - UnknownApiKeyError if the settings have API keys and the client sends an unknown key, even if β is given. If
          the settings have no API keys, ignores a client's key, because a gateway may use the same header.
        - UnknownPolicyError if no β is given and the client names a policy that does not exist, or one with a token of
          an API key's policy.
        - ChoiceNotAllowedError if the client gives a β or a mix or names a policy, and the operator allows clients no
          choice. Raises it also if the policy of the client's API key is a mix, and the client gives a mix, a policy,
          or a β for which that policy has no bounds.
        - InvalidMixError if the weights of the given mix do not sum to 1, and the operator has set bounds of β.
        - BetaOutOfBoundsError if that β, or the β of that mix or policy, is outside the operator's bounds. For a client
          whose API key has a mix as its policy, these are the bounds of that policy.
        """
        if self.server_default is None:
            if isinstance(given, Mix):
                if not self.state.clients_may_choose:
                    raise ChoiceNotAllowedError
                return BetaChoice(None, "request", self.revision, given)
            if given is not None or client.policy is not None:
                raise SingleTokenError
            return self.default
        key = self._key_of(client)
        key_policy = None if key is None else self.state.policies[key.policy]
        if isinstance(key_policy, MixPolicy):
            return self._of_key_with_mix(key_policy, given, client)
        if isinstance(given, Mix):
            if not given.is_normalized and (self.state.beta_min > CLEAN_BETA or self.state.beta_max < ROBUST_BETA):
                raise InvalidMixError("the operator has set bounds of β: the weights of a mix must sum to 1")
            return replace(self._chosen_by_client(given.beta, "request"), mix=given)
        if given is not None:
            return self._chosen_by_client(given, "request")
        if client.policy is not None:
            policy = self.state.policies.get(client.policy)
            if policy is None or tokens_of(policy) & self.state.private_tokens:
                raise UnknownPolicyError
            named = self._choice(policy.choice if isinstance(policy, MixPolicy) else policy, "policy")
            assert named.beta is not None
            return replace(self._chosen_by_client(named.beta, "policy"), mix=named.mix)
        if key_policy is not None:
            return self._choice(key_policy, "key")
        canary = self.state.canary
        if canary is not None and canary_position(client.sticky) < canary.share:
            return BetaChoice(canary.beta, "canary", self.revision)
        return self.default

    def check(self, betas: list[float], client: ClientIdentity = ANONYMOUS) -> None:
        """Raises an error if the client may not choose one of these β.

        Raises UnknownApiKeyError as `choose` does. Raises ChoiceNotAllowedError if the operator allows clients no
        choice, or if the policy of the client's API key is a mix. Raises BetaOutOfBoundsError if a β is outside the
        operator's bounds.
        """
        key = self._key_of(client)
        if key is not None and isinstance(self.state.policies[key.policy], MixPolicy):
            raise ChoiceNotAllowedError
        for beta in betas:
            self._chosen_by_client(beta, "request")

    def _key_of(self, client: ClientIdentity) -> KeyPolicy | None:
        if client.api_key is None or not self.state.api_keys:
            return None
        key = self.state.api_keys.get(hashlib.sha256(client.api_key.encode()).hexdigest())
        if key is None:
            raise UnknownApiKeyError
        return key

    def _of_key_with_mix(self, policy: MixPolicy, given: float | Mix | None, client: ClientIdentity) -> BetaChoice:
        if given is None and client.policy is None:
            return self._choice(policy.choice, "key")
        if not isinstance(given, float | int) or policy.beta_min is None or policy.beta_max is None:
            raise ChoiceNotAllowedError
        if not policy.beta_min <= given <= policy.beta_max:
            raise BetaOutOfBoundsError(given, policy.beta_min, policy.beta_max)
        return self._choice(move_to_robust(policy.choice, given), "request")

    def _choice(self, choice: float | Mix, source: BetaSource) -> BetaChoice:
        if isinstance(choice, Mix):
            return BetaChoice(choice.beta, source, self.revision, choice)
        return BetaChoice(choice, source, self.revision)

    def _chosen_by_client(self, beta: float, source: BetaSource) -> BetaChoice:
        state = self.state
        if not state.clients_may_choose:
            raise ChoiceNotAllowedError
        if not state.beta_min <= beta <= state.beta_max:
            raise BetaOutOfBoundsError(beta, state.beta_min, state.beta_max)
        return BetaChoice(beta, source, self.revision)


def is_calibrated(choices: Sequence[BetaChoice], fitted: Temperatures) -> bool:
    """Returns whether every choice has a fitted temperature. A mix has none. fitted: the temperatures by β."""
    return fitted.is_calibrated and all(choice.mix is None for choice in choices)


def canary_position(sticky: str) -> float:
    """Returns the position of a client: the hash of its `ClientIdentity.sticky`, as a number in [0, 1).

    A canary includes the clients whose position is below the canary's share. So if the share grows, the canary still
    includes all clients that it included before.
    """
    return int.from_bytes(hashlib.sha256(b"canary " + sticky.encode()).digest()[:7], "big") / 2**56
