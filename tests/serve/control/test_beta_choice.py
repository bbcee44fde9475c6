"""Which β an image gets, from which source and at which revision, and which requests are refused."""

import pytest

from serve.control.beta_choice import (
    ANONYMOUS,
    ActiveSettings,
    BetaChoice,
    ClientIdentity,
    canary_position,
)
from serve.control.credential_store import digest
from serve.control.settings_state import Canary, KeyPolicy, MixPolicy, SettingsState
from serve.errors import (
    BetaOutOfBoundsError,
    ChoiceNotAllowedError,
    UnknownApiKeyError,
    UnknownPolicyError,
)
from tureen.errors import InvalidMixError, SingleTokenError
from tureen.tokens import Mix

REVISION = 12
BUNDLE, FLAG = (0.2, "bundle"), (0.3, "operator")  # the default of the manifest, and of --default-beta
SECRET = "tureen_key_of_ada"
KEYS = {"policies": {"strict": 0.9, "open": 0.05}, "api_keys": {digest(SECRET): KeyPolicy(name="ada", policy="strict")}}
LOOSE = {**KEYS, "api_keys": {digest(SECRET): KeyPolicy(name="ada", policy="open")}}
IN_CANARY, OUT_OF_CANARY = "client 1", "client 0"
CANARY = {"canary": Canary(beta=0.8, share=0.3)}


def settings(server=BUNDLE, **state):
    return ActiveSettings(*server, revision=REVISION, state=SettingsState(**state))


def client(policy=None, key=None, sticky=OUT_OF_CANARY):
    return ClientIdentity(policy=policy, api_key=key, sticky=sticky)


def test_the_two_clients_of_this_file_are_on_either_side_of_the_canary():
    assert canary_position(IN_CANARY) < CANARY["canary"].share <= canary_position(OUT_OF_CANARY)


@pytest.mark.parametrize(
    ("active", "requested", "of", "beta", "source"),
    [
        # the defaults, from the last to the first
        (settings(), None, client(), 0.2, "bundle"),
        (settings(FLAG), None, client(), 0.3, "operator"),
        (settings(default_beta=0.6), None, client(), 0.6, "operator"),
        (settings(FLAG, default_beta=0.6), None, client(), 0.6, "operator"),
        (settings(default_beta=0.0), None, client(), 0.0, "operator"),
        (settings(), None, ANONYMOUS, 0.2, "bundle"),
        # bounds move a default of the bundle or of the flag, and are then the operator's choice
        (settings(beta_min=0.5), None, client(), 0.5, "operator"),
        (settings(beta_max=0.1), None, client(), 0.1, "operator"),
        (settings(beta_min=0.2, beta_max=0.2), None, client(), 0.2, "bundle"),
        (settings(FLAG, beta_min=0.5), None, client(), 0.5, "operator"),
        (settings(beta_min=0.5, default_beta=0.7), None, client(), 0.7, "operator"),
        # a canary stands before every default, for its share of the clients
        (settings(**CANARY), None, client(sticky=IN_CANARY), 0.8, "canary"),
        (settings(**CANARY, default_beta=0.6), None, client(sticky=IN_CANARY), 0.8, "canary"),
        (settings(**CANARY), None, client(), 0.2, "bundle"),
        (settings(**CANARY, default_beta=0.6), None, client(), 0.6, "operator"),
        # an API key stands before the canary; its policy may lie outside the bounds
        (settings(**KEYS), None, client(key=SECRET), 0.9, "key"),
        (settings(**KEYS, **CANARY), None, client(key=SECRET, sticky=IN_CANARY), 0.9, "key"),
        (settings(**LOOSE, beta_min=0.5), None, client(key=SECRET), 0.05, "key"),
        (settings(**KEYS, clients_may_choose=False), None, client(key=SECRET), 0.9, "key"),
        (settings(policies={"strict": 0.9}), None, client(key="of a gateway"), 0.2, "bundle"),
        # a policy of the request stands before its API key
        (settings(**KEYS), None, client(policy="open"), 0.05, "policy"),
        (settings(**KEYS), None, client(policy="open", key=SECRET), 0.05, "policy"),
        (settings(**KEYS, **CANARY), None, client(policy="open", sticky=IN_CANARY), 0.05, "policy"),
        # β of the request stands before everything
        (settings(), 0.0, client(), 0.0, "request"),
        (settings(), 1.0, client(), 1.0, "request"),
        (settings(default_beta=0.6), 0.4, client(), 0.4, "request"),
        (settings(**KEYS, **CANARY), 0.4, client(key=SECRET, sticky=IN_CANARY), 0.4, "request"),
        (settings(**KEYS), 0.4, client(policy="open"), 0.4, "request"),
        # the bounds belong to what clients may choose
        (settings(beta_min=0.3, beta_max=0.7), 0.3, client(), 0.3, "request"),
        (settings(beta_min=0.3, beta_max=0.7), 0.7, client(), 0.7, "request"),
        # clients may not choose, and do not
        (settings(clients_may_choose=False), None, client(), 0.2, "bundle"),
        (settings(clients_may_choose=False, default_beta=0.6), None, client(), 0.6, "operator"),
        (settings(clients_may_choose=False, **CANARY), None, client(sticky=IN_CANARY), 0.8, "canary"),
    ],
)
def test_a_request_gets_the_beta_of_the_first_available_source(active, requested, of, beta, source):
    assert active.choose(requested, of) == BetaChoice(beta, source, REVISION)


@pytest.mark.parametrize(
    ("active", "requested", "of", "error"),
    [
        (settings(beta_min=0.5), 0.49, client(), BetaOutOfBoundsError),
        (settings(beta_max=0.5), 0.51, client(), BetaOutOfBoundsError),
        (settings(**LOOSE, beta_min=0.5), None, client(policy="open"), BetaOutOfBoundsError),
        (settings(**LOOSE, beta_min=0.5), 0.05, client(key=SECRET), BetaOutOfBoundsError),
        (settings(clients_may_choose=False), 0.2, client(), ChoiceNotAllowedError),
        (settings(**KEYS, clients_may_choose=False), None, client(policy="strict"), ChoiceNotAllowedError),
        (settings(**KEYS, clients_may_choose=False), 0.9, client(key=SECRET), ChoiceNotAllowedError),
        (settings(clients_may_choose=False, beta_min=0.5), 0.1, client(), ChoiceNotAllowedError),
        (settings(**KEYS), None, client(policy="none"), UnknownPolicyError),
        (settings(), None, client(policy="strict"), UnknownPolicyError),
        (settings(**KEYS), None, client(key="wrong"), UnknownApiKeyError),
        (settings(**KEYS), 0.4, client(key="wrong"), UnknownApiKeyError),
        (settings(**KEYS), None, client(policy="open", key="wrong"), UnknownApiKeyError),
        (settings(**KEYS, **CANARY), None, client(key="", sticky=IN_CANARY), UnknownApiKeyError),
    ],
)
def test_a_choice_that_the_operator_does_not_allow_is_refused(active, requested, of, error):
    with pytest.raises(error):
        active.choose(requested, of)


FOG = Mix((("fog", 0.75), ("robust", 0.25)))


@pytest.mark.parametrize("active", [settings(), settings(beta_min=0.25, beta_max=0.25), settings(**KEYS, **CANARY)])
def test_a_mix_of_the_request_is_chosen_with_the_share_of_its_robust_token(active):
    assert active.choose(FOG, client(sticky=IN_CANARY)) == BetaChoice(0.25, "request", REVISION, FOG)


@pytest.mark.parametrize(
    ("state", "of", "error"),
    [
        ({"beta_min": 0.26}, client(), BetaOutOfBoundsError),
        ({"beta_max": 0.24}, client(), BetaOutOfBoundsError),
        ({"clients_may_choose": False}, client(), ChoiceNotAllowedError),
        (KEYS, client(key="wrong"), UnknownApiKeyError),
    ],
)
def test_a_mix_that_the_operator_does_not_allow_is_refused(state, of, error):
    with pytest.raises(error):
        settings(**state).choose(FOG, of)


def test_a_model_with_one_token_takes_a_mix_of_named_tokens():
    assert settings((None, "bundle")).choose(FOG) == BetaChoice(None, "request", REVISION, FOG)
    with pytest.raises(ChoiceNotAllowedError):
        settings((None, "bundle"), clients_may_choose=False).choose(FOG)


def test_the_refusal_of_a_beta_names_it_and_the_bounds():
    with pytest.raises(BetaOutOfBoundsError) as caught:
        settings(beta_min=0.25, beta_max=0.75).choose(0.1)
    assert all(number in str(caught.value) for number in ("0.1", "0.25", "0.75"))


@pytest.mark.parametrize(
    "state", [{}, {"default_beta": 0.6}, {"beta_min": 0.5}, KEYS, CANARY, {"clients_may_choose": False}]
)
def test_a_model_with_one_token_has_no_beta_for_any_settings(state):
    active = settings((None, "bundle"), **state)
    for of in (client(), client(key="wrong"), client(key=SECRET), client(sticky=IN_CANARY)):
        assert active.choose(None, of) == BetaChoice(None, "bundle", REVISION)
    for requested, of in ((0.5, client()), (0.0, client()), (None, client(policy="strict"))):
        with pytest.raises(SingleTokenError):
            active.choose(requested, of)


def test_several_betas_are_checked_as_choices_of_the_client():
    active = settings(beta_min=0.3, beta_max=0.7)
    active.check([])
    active.check([0.3, 0.5, 0.7])
    with pytest.raises(BetaOutOfBoundsError):
        active.check([0.5, 0.71])
    with pytest.raises(ChoiceNotAllowedError):
        settings(clients_may_choose=False).check([0.5])


def test_a_canary_gets_about_its_share_and_keeps_its_clients_when_it_grows():
    names = [f"client {n}" for n in range(1000)]

    def in_canary(share):
        active = settings(canary=Canary(beta=0.8, share=share))
        return {name for name in names if active.choose(None, client(sticky=name)).source == "canary"}

    small, large = in_canary(0.1), in_canary(0.4)
    assert small < large
    assert 60 < len(small) < 140  # 100 are expected, with a standard deviation of 9.5
    assert 340 < len(large) < 460  # 400 are expected, with a standard deviation of 15.5


def test_unchanged_settings_are_those_of_the_bundle_at_revision_0():
    assert ActiveSettings(0.2, "bundle").choose(None) == BetaChoice(0.2, "bundle", 0)


WITH_FOG = {"tokens": {"fog": "f" * 64}}
MIX = "fog:0.8,robust:0.2"
MIXED = {**KEYS, **WITH_FOG, "policies": {"strict": MixPolicy(mix=MIX), "open": 0.05}}
BOUNDED = {**MIXED, "policies": {"strict": MixPolicy(mix=MIX, beta_min=0.25, beta_max=0.5), "open": 0.05}}
OF_ADA = client(key=SECRET)


def weights(choice):
    return {name: pytest.approx(weight) for name, weight in choice.mix.weights}


PUBLIC = {**MIXED, "api_keys": {}}


@pytest.mark.parametrize(
    ("state", "of", "source"), [(MIXED, OF_ADA, "key"), (PUBLIC, client(policy="strict"), "policy")]
)
def test_a_policy_may_be_a_mix(state, of, source):
    choice = settings(**state).choose(None, of)
    assert (choice.source, choice.revision, choice.beta) == (source, REVISION, pytest.approx(0.2))
    assert weights(choice) == {"fog": 0.8, "robust": 0.2}


def test_a_policy_may_be_a_mix_of_clean_and_robust():
    active = settings(**{**KEYS, "policies": {"strict": MixPolicy(mix="clean:1,robust:3")}})
    assert active.choose(None, OF_ADA) == BetaChoice(0.75, "key", REVISION)


def test_a_client_chooses_within_the_bounds_of_the_mix_of_its_key():
    choice = settings(**BOUNDED, beta_min=0.9).choose(0.5, OF_ADA)  # the bounds of other clients do not apply
    assert (choice.source, choice.beta) == ("request", pytest.approx(0.6))
    assert weights(choice) == {"fog": 0.4, "robust": 0.6}
    for beta in (0.2, 0.6):
        with pytest.raises(BetaOutOfBoundsError, match=r"0\.25 to 0\.5"):
            settings(**BOUNDED).choose(beta, OF_ADA)


@pytest.mark.parametrize(
    ("state", "given", "policy"),
    [
        (MIXED, 0.5, None),
        (MIXED, Mix((("fog", 1.0),)), None),
        (BOUNDED, Mix((("haze", 1.0),)), None),
        (BOUNDED, None, "open"),
        (BOUNDED, None, "absent"),
    ],
)
def test_a_client_with_the_mix_of_its_key_chooses_nothing_else(state, given, policy):
    with pytest.raises(ChoiceNotAllowedError):
        settings(**state).choose(given, client(policy=policy, key=SECRET))


def test_the_operators_bounds_limit_a_named_policy_with_a_mix():
    with pytest.raises(BetaOutOfBoundsError):
        settings(**PUBLIC, beta_min=0.5).choose(None, client(policy="strict"))
    assert settings(**MIXED, beta_min=0.5).choose(None, OF_ADA).beta == pytest.approx(0.2)


def test_a_policy_with_a_token_of_an_api_key_exists_for_this_key_alone():
    assert SettingsState(**MIXED).private_tokens == {"fog"}
    with pytest.raises(UnknownPolicyError):
        settings(**MIXED).choose(None, client(policy="strict"))
    state = {**MIXED, "policies": {**MIXED["policies"], "open": MixPolicy(mix="clean:1,robust:1")}}
    assert settings(**state).choose(None, client(policy="open")).beta == 0.5


def test_a_sweep_is_within_the_bounds_and_refused_to_a_client_with_the_mix_of_its_key():
    settings(**MIXED).check([0.0, 1.0])
    settings(**LOOSE).check([0.0, 1.0], OF_ADA)
    with pytest.raises(BetaOutOfBoundsError):
        settings(**MIXED, beta_min=0.5).check([0.2])
    with pytest.raises(ChoiceNotAllowedError):
        settings(**BOUNDED).check([0.3], OF_ADA)
    with pytest.raises(UnknownApiKeyError):
        settings(**MIXED).check([0.3], client(key="another"))


def test_weights_that_do_not_sum_to_1_are_refused_if_the_operator_has_set_bounds():
    thin = Mix((("robust", 0.001),))
    assert settings().choose(thin, ANONYMOUS).mix == thin
    for bounds in ({"beta_min": 0.5}, {"beta_max": 0.9}):
        with pytest.raises(InvalidMixError, match="sum to 1"):
            settings(**bounds).choose(thin, ANONYMOUS)
