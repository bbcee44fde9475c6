"""What a change does to the settings, what it may not do, and what follows later."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.control.change import (
    add_api_key,
    add_token,
    apply_change,
    apply_next_due,
    cancel_plan,
    next_due_time,
    parse_change,
    remove_api_key,
    remove_token,
    roll_back,
)
from serve.control.settings_state import MAX_POLICIES, KeyPolicy, MixPolicy, SettingsState
from serve.errors import InvalidChangeError, UnknownOperatorTokenError
from tureen.bundle.strength_curve import StrengthCurve

NOW = datetime(2027, 1, 31, 8, tzinfo=UTC)


CURVE = StrengthCurve(betas=[0, 0.6, 1], strengths=[0, 0.5, 1], n=9)
SWITCH = StrengthCurve(betas=[0, 0.3, 0.5, 0.6, 1], strengths=[0, 0.004, 0.1571, 0.5, 1], n=9)  # hardly moves at first


def apply(state, in_force=0.2, now=NOW, curve=CURVE, **settings):
    change = parse_change({"reason": "a test", **settings})
    return apply_change(state, change, who="ada", now=now, in_force=in_force, curve=curve)


def after_s(seconds):
    return NOW + timedelta(seconds=seconds)


def test_omitted_fields_keep_their_values():
    state = apply(SettingsState(), default_beta=0.6, beta_min=0.5, policies={"uploads": 0.9})
    state = apply(state, clients_may_choose=False)
    assert (state.default_beta, state.beta_min, state.clients_may_choose) == (0.6, 0.5, False)
    assert state.policies == {"uploads": 0.9}


def test_null_gives_the_default_back_to_the_server():
    assert apply(SettingsState(default_beta=0.6), default_beta=None).default_beta is None


@pytest.mark.parametrize(
    "beta", [float("nan"), float("inf"), "0.5", True, [], {}, -0.1, -0.0, 1.0000001, 1e309, 10**400, "clean"]
)
@pytest.mark.parametrize("name", ["default_beta", "beta_min", "beta_max"])
def test_no_beta_but_a_number_from_0_to_1(name, beta):
    with pytest.raises(InvalidChangeError, match=name):
        apply(SettingsState(), **{name: beta})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the change is empty"),
        ({"beta": 0.5}, "there is no setting 'beta'"),
        ({"default_beta": 0.5, "reason": " "}, "reason"),
        ({"default_beta": 0.5, "reason": "a\nb"}, "reason"),
        ({"default_beta": 0.5, "reason": "x" * 501}, "reason"),
        ({"default_beta": 0.5, "ttl_s": 0}, "ttl_s: whole seconds"),
        ({"default_beta": 0.5, "ttl_s": 1.5}, "ttl_s: whole seconds"),
        ({"default_beta": 0.5, "ttl_s": True}, "ttl_s: whole seconds"),
        ({"ttl_s": 60}, "the change is empty"),
        ({"beta_min": 0.1, "ttl_s": 60}, "ttl_s is for default_beta"),
        ({"default_beta": None, "ramp_s": 60}, "ramp_s needs"),
        ({"default_beta": 0.5, "ramp_s": 60, "ttl_s": 60}, "ttl_s ends before the ramp"),
        ({"default_beta": 0.5, "at": "2027-01-31T07:00:00Z"}, "at is 2027-01-31T07:00:00"),
        ({"default_beta": 0.5, "at": "2029-01-31T07:00:00Z"}, "at is 2029"),
        ({"default_beta": 0.5, "at": "2027-01-31T09:00:00"}, "at: "),
        ({"default_beta": 0.5, "at": "2027-01-31T09:00:00Z", "ttl_s": 5}, "at is for default_beta only"),
        ({"beta_min": 0.8, "beta_max": 0.7}, "beta_min 0.8 is above beta_max 0.7"),
        ({"default_beta": 0.1, "beta_min": 0.5}, "default_beta 0.1 is outside the bounds 0.5 to 1"),
        ({"canary": {"beta": 0.5, "share": 1}}, "canary: "),
        ({"canary": {"beta": 0.9, "share": 0.1}, "beta_max": 0.8}, "the canary's β 0.9 is outside"),
        ({"policies": {"Up loads": 0.5}}, "policies: "),
        ({"clients_may_choose": 1}, "clients_may_choose: true or false"),
        ({"default_strength": 0.5, "default_beta": 0.5}, "default_beta and default_strength exclude each other"),
        ({"default_strength": None}, "default_strength is null"),
        ({"default_strength": 0.5, "at": "2027-01-31T09:00:00Z", "beta_min": 0.1}, "at is for default_beta only"),
    ],
)
def test_a_wrong_change_is_refused_by_field_and_rule(settings, said):
    with pytest.raises(InvalidChangeError) as caught:
        apply(SettingsState(), **settings)
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    "strength", [float("nan"), float("inf"), "0.5", True, [], {}, -0.1, 1.0000001, 10**400, "clean"]
)
def test_no_strength_but_a_number_from_0_to_1(strength):
    with pytest.raises(InvalidChangeError, match="default_strength: a number from 0 to 1"):
        parse_change({"reason": "a test", "default_strength": strength})


@pytest.mark.parametrize("options", [{}, {"ttl_s": 60}, {"at": "2027-01-31T09:00:00Z"}, {"beta_max": 0.7}])
def test_a_strength_is_the_change_of_the_default_to_its_beta(options):
    states = [
        apply(SettingsState(), **settings, **options) for settings in ({"default_strength": 0.5}, {"default_beta": 0.6})
    ]
    plans = [[(plan.kind, plan.at, plan.default_beta) for plan in state.pending] for state in states]
    assert plans[0] == plans[1]
    assert states[0].model_copy(update={"pending": ()}) == states[1].model_copy(update={"pending": ()})


@pytest.mark.parametrize(
    ("start", "strength", "strengths"),
    [(0.0, 0.5, [0.125, 0.25, 0.375, 0.5]), (1.0, 0.2, [0.8, 0.6, 0.4, 0.2]), (0.5, 0.1571, [0.1571] * 4)],
)
def test_a_ramp_to_a_strength_is_even_in_strength(start, strength, strengths):
    ramp = apply(
        SettingsState(), default_strength=strength, ramp_s=60, ramp_steps=4, in_force=start, curve=SWITCH
    ).pending
    assert [SWITCH.strength_at(step.default_beta) for step in ramp] == strengths
    assert ramp[-1].default_beta == SWITCH.beta_at(strength)


def test_a_ramp_to_a_beta_is_even_in_beta_whatever_the_curve():
    ramp = apply(SettingsState(), default_beta=0.6, ramp_s=60, ramp_steps=4, in_force=0.2, curve=SWITCH).pending
    assert [step.default_beta for step in ramp] == [0.3, 0.4, 0.5, 0.6]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 20))
def test_a_ramp_to_a_strength_goes_from_one_end_to_the_other(start, strength, steps):
    ramp = apply(
        SettingsState(), default_strength=strength, ramp_s=600, ramp_steps=steps, in_force=start, curve=SWITCH
    ).pending
    betas = [step.default_beta for step in ramp]
    end = SWITCH.beta_at(strength)
    assert betas == sorted(betas, reverse=end < start)
    assert betas[-1] == end
    assert all(min(start, end) <= beta <= max(start, end) for beta in betas)


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_operator_may_give_the_strength_that_is_shown_for_any_allowed_beta(least, beta):
    state = SettingsState(beta_min=min(least, beta))
    shown = SWITCH.strength_at(beta)
    after = apply(state, default_strength=shown, curve=SWITCH)
    assert after.default_beta >= state.beta_min
    assert SWITCH.strength_at(after.default_beta) == pytest.approx(shown, abs=1e-4)
    assert apply(SettingsState(), default_strength=shown, beta_min=min(least, beta), curve=SWITCH) == after


def test_a_ttl_reverts_to_the_previous_value():
    state = apply(SettingsState(default_beta=0.3), default_beta=0.9, ttl_s=3600)
    assert state.default_beta == 0.9
    assert next_due_time(state) == after_s(3600)
    assert apply_next_due(state, after_s(3599)) is None
    reverted, plan = apply_next_due(state, after_s(3600))
    assert (reverted.default_beta, reverted.pending, plan.kind) == (0.3, (), "revert")


def test_a_ramp_goes_in_steps_and_ends_exactly():
    state = apply(SettingsState(), default_beta=0.7, ramp_s=600, ramp_steps=4, in_force=0.1)
    assert state.default_beta is None
    seen = []
    for minute in range(11):
        while (done := apply_next_due(state, after_s(60 * minute))) is not None:
            state = done[0]
            seen.append((minute, round(state.default_beta, 10)))
    assert seen == [(3, 0.25), (5, 0.4), (8, 0.55), (10, 0.7)]
    assert state.default_beta == 0.7
    assert state.pending == ()


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 100))
@example(0.0, 0.8, 10)
@example(0.12345, 0.12346, 100)
def test_the_steps_of_a_ramp_are_short_numbers_from_one_end_to_the_other(start, end, steps):
    state = apply(SettingsState(), default_beta=end, ramp_s=600, ramp_steps=steps, in_force=start)
    betas = [start, *(plan.default_beta for plan in state.pending)]
    assert betas[-1] == end
    assert betas == sorted(betas, reverse=end < start)
    assert all(beta in (start, end) or len(f"{beta}") <= len("0.1234") or beta < 1e-4 for beta in betas)


def settled(state, now):
    """The state once all is done that is due by then."""
    while (done := apply_next_due(state, now)) is not None:
        state = done[0]
    return state


def test_late_settlement_gives_the_state_of_settlement_in_time():
    planned = apply(SettingsState(), default_beta=0.3, at="2027-01-31T08:00:06Z")
    planned = apply(planned, default_beta=0.9, ttl_s=12)
    in_time = settled(settled(planned, after_s(6)), after_s(20))
    assert settled(planned, after_s(20)) == in_time
    assert (in_time.default_beta, in_time.pending) == (0.3, ())


def test_an_extended_ttl_reverts_to_the_value_before_the_first():
    state = apply(SettingsState(default_beta=0.2), default_beta=0.9, ttl_s=60)
    state = apply(state, default_beta=0.9, ttl_s=120, now=after_s(30))
    assert settled(state, after_s(149)).default_beta == 0.9
    assert settled(state, after_s(150)).default_beta == 0.2


def test_a_ttl_in_the_middle_of_a_ramp_reverts_to_where_the_ramp_went():
    state = settled(apply(SettingsState(), default_beta=1.0, ramp_s=600, in_force=0.0), after_s(300))
    assert state.default_beta == 0.5
    state = apply(state, default_beta=0.3, ttl_s=60, now=after_s(300))
    assert settled(state, after_s(360)).default_beta == 1.0


@pytest.mark.parametrize("reason", ["two\nlines", "a\u009b31m", "a\x7f", "\u202eback", "a\u2028b", " ", "x" * 501])
def test_a_reason_is_one_line_that_no_terminal_obeys(reason):
    with pytest.raises(InvalidChangeError, match="reason"):
        apply(SettingsState(), default_beta=0.5, reason=reason)


@pytest.mark.parametrize(
    "at", [1_800_000_000, "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2027-02-01T08:00:00", "tomorrow"]
)
def test_a_time_is_a_text_with_an_existing_zone(at):
    with pytest.raises(InvalidChangeError, match="at"):
        apply(SettingsState(), default_beta=0.5, at=at)


def test_a_canarys_share_is_a_number():
    with pytest.raises(InvalidChangeError, match="canary"):
        apply(SettingsState(), canary={"beta": 0.5, "share": "0.1"})


def test_a_ramp_with_a_ttl_reverts_after_it():
    state = apply(SettingsState(default_beta=0.5), default_beta=0.7, ramp_s=600, ttl_s=1200)
    state = settled(state, after_s(600))
    assert state.default_beta == 0.7
    state, plan = apply_next_due(state, after_s(1200))
    assert (state.default_beta, plan.kind) == (0.5, "revert")


def test_another_default_replaces_a_running_change_but_not_a_scheduled_one():
    state = apply(SettingsState(), default_beta=0.4, at="2027-02-01T08:00:00Z")
    state = apply(state, default_beta=0.9, ttl_s=3600)
    state = apply(state, default_beta=0.8)
    assert [plan.kind for plan in state.pending] == ["schedule"]
    assert state.default_beta == 0.8


def test_a_plan_is_cancelled_by_its_id_with_all_its_steps():
    state = apply(SettingsState(), default_beta=0.7, ramp_s=600)
    (plan_id,) = {plan.id for plan in state.pending}
    assert cancel_plan(state, plan_id).pending == ()
    with pytest.raises(InvalidChangeError, match="no planned change"):
        cancel_plan(state, "none")


def test_bounds_do_not_contradict_planned_changes():
    state = apply(SettingsState(default_beta=0.3), default_beta=0.9, ttl_s=3600)
    with pytest.raises(InvalidChangeError, match="planned"):
        apply(state, beta_min=0.5)


def test_a_policy_may_lie_outside_the_bounds_and_stays_while_a_key_stands_for_it():
    state = apply(SettingsState(), policies={"internal": 0.0}, beta_min=0.5)
    state = add_api_key(state, "ab", KeyPolicy(name="crawler", policy="internal"))
    with pytest.raises(InvalidChangeError, match="crawler"):
        apply(state, policies={"internal": None})
    assert apply(remove_api_key(state, "crawler"), policies={"internal": None}).policies == {}


def test_a_rollback_brings_no_plan_and_no_removed_key_back():
    state = add_api_key(apply(SettingsState(), policies={"a": 0.1}), "ab", KeyPolicy(name="k", policy="a"))
    earlier = apply(state, default_beta=0.9, ttl_s=60)
    assert roll_back(remove_api_key(earlier, "k"), earlier) == SettingsState(default_beta=0.9, policies={"a": 0.1})


def test_a_rollback_takes_no_key_away_nor_the_policy_that_it_stands_for():
    state = add_api_key(apply(SettingsState(), policies={"a": 0.1, "b": 0.2}), "ab", KeyPolicy(name="k", policy="a"))
    back = roll_back(state, SettingsState(default_beta=0.4, policies={"c": 0.3}))
    assert (back.default_beta, back.policies) == (0.4, {"a": 0.1, "c": 0.3})
    assert back.api_keys == state.api_keys


betas = st.floats(0, 1)
settings = st.fixed_dictionaries(
    {"default_beta": st.none() | betas},
    optional={"ttl_s": st.integers(601, 10_000), "beta_min": betas, "beta_max": betas},
)


@given(st.lists(st.tuples(settings, st.integers(0, 5000)), max_size=8))
def test_the_state_is_valid_after_any_changes_and_settles_with_time(steps):
    state, now = SettingsState(), NOW
    for wanted, seconds in steps:
        try:
            state = apply(state, now=now, **wanted)
        except InvalidChangeError:
            continue
        now += timedelta(seconds=seconds)
        while (done := apply_next_due(state, now)) is not None:
            state = done[0]
        assert SettingsState.model_validate_json(state.model_dump_json()) == state
    assert all(plan.at > now for plan in state.pending)


FOG, HAZE = "f" * 64, "a" * 64


def add(state, name, sha256, limit=10, may_replace=False):
    return add_token(state, name, sha256, limit=limit, may_replace=may_replace)


def test_a_token_is_added_and_removed():
    state = add(SettingsState(), "fog", FOG)
    assert state.tokens == {"fog": FOG}
    assert remove_token(state, "fog") == SettingsState()


def test_a_name_is_taken_unless_the_token_is_the_same_or_may_be_replaced():
    state = add(SettingsState(), "fog", FOG)
    assert add(state, "fog", FOG) == state
    with pytest.raises(InvalidChangeError, match="fog exists already"):
        add(state, "fog", HAZE)
    assert add(state, "fog", HAZE, may_replace=True).tokens == {"fog": HAZE}


def test_the_number_of_tokens_is_limited():
    state = add(SettingsState(), "fog", FOG, limit=1)
    with pytest.raises(InvalidChangeError, match="1 tokens, which is the limit"):
        add(state, "haze", HAZE, limit=1)
    assert add(state, "fog", HAZE, limit=1, may_replace=True).tokens == {"fog": HAZE}


def test_a_token_that_is_in_use_or_unknown_is_not_removed():
    state = apply(add(SettingsState(), "fog", FOG), policies={"ada": {"mix": "fog:1"}})
    with pytest.raises(InvalidChangeError, match="fog is in use by the policy ada"):
        remove_token(state, "fog")
    with pytest.raises(UnknownOperatorTokenError, match="haze"):
        remove_token(state, "haze")
    assert remove_token(apply(state, policies={"ada": None}), "fog").tokens == {}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"mix": "haze:1"}, "has the token haze, which no operator has added"),
        ({"mix": "fog"}, "policies: 'fog' is not a token with its weight"),
        ({"mix": "fog:-1"}, "policies: the weight of fog is '-1'"),
        ({"mix": ",".join(f"t{n}:1" for n in range(100))}, "policies: the mix has 100 tokens"),
        ({"mix": "fog:1", "beta_min": 0.5}, "policies: give both"),
        ({"mix": "fog:1", "beta_min": 0.5, "beta_max": 0.4}, "policies: give both"),
        ({"mix": "fog:1", "beta_min": 0, "beta_max": 2}, "policies"),
        ({"token": "fog"}, "policies"),
    ],
)
def test_a_wrong_mix_is_no_policy(policy, said):
    with pytest.raises(InvalidChangeError, match=said):
        apply(add(SettingsState(), "fog", FOG), policies={"ada": policy})


def test_a_rollback_restores_tokens_and_keeps_those_that_a_key_needs():
    before = add(SettingsState(), "haze", HAZE)
    state = apply(add(remove_token(before, "haze"), "fog", FOG), policies={"ada": {"mix": "fog:1"}})
    assert roll_back(state, before).tokens == {"haze": HAZE}
    keyed = add_api_key(state, "0" * 64, KeyPolicy(name="key", policy="ada"))
    restored = roll_back(keyed, before)
    assert restored.tokens == {"fog": FOG, "haze": HAZE}
    assert restored.policies == {"ada": MixPolicy(mix="fog:1")}
    assert SettingsState.model_validate(restored.model_dump()) == restored


def test_a_rollback_leaves_a_key_its_policy_and_its_token_even_if_both_had_another_value():
    before = apply(add(SettingsState(), "fog", HAZE), policies={"ada": 0.5})
    state = apply(add(before, "fog", FOG, may_replace=True), policies={"ada": {"mix": "fog:1"}})
    state = add_api_key(state, "0" * 64, KeyPolicy(name="key", policy="ada"))
    restored = roll_back(state, before)
    assert (restored.policies, restored.tokens) == (state.policies, state.tokens)


def test_a_rollback_to_too_many_policies_is_refused():
    old = SettingsState(policies={f"old{n}": 0.5 for n in range(MAX_POLICIES)})
    state = SettingsState(policies={"new": 0.5}, api_keys={"0" * 64: KeyPolicy(name="key", policy="new")})
    with pytest.raises(InvalidChangeError, match="policies"):
        roll_back(state, old)
