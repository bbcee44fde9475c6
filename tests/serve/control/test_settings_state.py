"""Which settings are valid, and how they are stored."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from serve.control.settings_state import (
    MAX_KEYS,
    MAX_POLICIES,
    Canary,
    KeyPolicy,
    PendingChange,
    SettingsState,
    format_time,
)

PLAN = {"id": "ab12", "kind": "schedule", "at": "2027-01-31T08:00:00Z", "who": "ada", "reason": "a test"}


def test_settings_survive_their_json():
    state = SettingsState(
        default_beta=0.7,
        beta_min=0.1,
        policies={"uploads": 0.9},
        api_keys={"ab": KeyPolicy(name="ada", policy="uploads")},
        canary=Canary(beta=0.8, share=0.1),
        pending=(PendingChange(**PLAN, default_beta=0.5),),
    )
    assert SettingsState.model_validate_json(state.model_dump_json()) == state


@pytest.mark.parametrize("beta", [0, 1, 0.5])
def test_a_beta_is_a_number_from_0_to_1(beta):
    assert SettingsState(default_beta=beta).default_beta == beta


@pytest.mark.parametrize("beta", [-0.1, 1.1, -0.0, True, "0.5", "robust", float("nan"), float("inf"), [], 10**400])
def test_another_value_is_no_beta(beta):
    with pytest.raises(ValidationError):
        SettingsState(default_beta=beta)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"beta_min": 0.6, "beta_max": 0.5}, "beta_min 0.6 is above beta_max 0.5"),
        ({"default_beta": 0.4, "beta_min": 0.5}, "default_beta 0.4 is outside the bounds 0.5 to 1"),
        ({"canary": Canary(beta=0.9, share=0.1), "beta_max": 0.8}, "the canary's β 0.9 is outside the bounds 0 to 0.8"),
        ({"pending": (PendingChange(**PLAN, default_beta=0.2),), "beta_min": 0.5}, "planned for 2027-01-31T08:00:00"),
        ({"api_keys": {"ab": KeyPolicy(name="ada", policy="uploads")}}, "uploads, which does not exist"),
        ({"unknown": 1}, "unknown"),
        ({"policies": {"Up loads": 0.5}}, "policies"),
        ({"policies": {f"p{n}": 0.5 for n in range(MAX_POLICIES + 1)}}, "policies"),
        ({"api_keys": {f"{n}": KeyPolicy(name="a", policy="p") for n in range(MAX_KEYS + 1)}}, "api_keys"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, rule):
    with pytest.raises(ValidationError, match=rule):
        SettingsState(**settings)


@pytest.mark.parametrize("share", [0, 1, -0.1, "0.1", True])
def test_a_canary_has_a_share_between_0_and_1(share):
    with pytest.raises(ValidationError, match="share"):
        Canary(beta=0.5, share=share)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        SettingsState().default_beta = 0.5


@pytest.mark.parametrize("at", [1_800_000_000, "2027-01-31T08:00:00", "tomorrow", "9999-12-31T23:59:59-14:00"])
def test_a_time_is_text_with_a_zone(at):
    with pytest.raises(ValidationError):
        PendingChange(**{**PLAN, "at": at}, default_beta=None)


def test_times_are_stored_in_utc_and_sort_as_text():
    east = timezone(timedelta(hours=9))
    plan = PendingChange(**{**PLAN, "at": "2027-01-31T17:00:00+09:00"}, default_beta=None)
    assert format_time(plan.at) == "2027-01-31T08:00:00.000000Z"
    times = [datetime(2027, 1, 1, 8, 0, 0, micro, tzinfo=zone) for micro in (0, 5, 500_000) for zone in (east, UTC)]
    assert sorted(format_time(at) for at in times) == [format_time(at) for at in sorted(times)]


def test_settings_without_tokens_are_those_that_an_earlier_version_reads():
    assert "tokens" not in SettingsState().model_dump_json()
    state = SettingsState(tokens={"fog": "f" * 64})
    assert SettingsState.model_validate_json(state.model_dump_json()) == state
