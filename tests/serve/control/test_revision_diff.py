"""The texts of the history for each change."""

import pytest

from serve.control.revision_diff import (
    describe_changes,
    describe_token_changes,
    format_canary,
    format_plan,
    format_policy,
)

BEFORE = {
    "default_beta": None,
    "beta_min": 0.0,
    "beta_max": 1.0,
    "clients_may_choose": True,
    "policies": {"uploads": 0.9},
    "canary": None,
    "keys": [{"name": "ada", "policy": "uploads"}],
    "pending": [],
}
PLAN = {"id": "ab12", "kind": "revert", "at": "2027-01-31T08:00:00.000000Z", "default_beta": None}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, []),
        ({"default_beta": 0.8}, ["the server's default β → 0.8"]),
        ({"beta_min": 0.25, "beta_max": 0.75}, ["least β 0 → 0.25", "greatest β 1 → 0.75"]),
        ({"clients_may_choose": False}, ["clients may not choose"]),
        ({"policies": {}}, ["policy uploads 0.9 → none"]),
        ({"policies": {"a": 0.1, "uploads": 1.0}}, ["policy a none → 0.1", "policy uploads 0.9 → 1"]),
        ({"canary": {"beta": 0.9, "share": 0.125}}, ["canary none → 12.5 % at β 0.9"]),
        ({"keys": []}, ["key ada removed"]),
        ({"keys": [*BEFORE["keys"], {"name": "bob", "policy": "uploads"}]}, ["key bob for uploads made"]),
        ({"pending": [PLAN]}, ["planned: 2027-01-31T08:00:00Z revert to the server's default β, id ab12"]),
        (
            {"default_beta": 0.8, "pending": [PLAN]},
            ["the server's default β → 0.8", "planned: 2027-01-31T08:00:00Z revert to the server's default β, id ab12"],
        ),
    ],
)
def test_each_changed_setting_has_its_text(changes, texts):
    assert list(describe_changes(BEFORE, {**BEFORE, **changes})) == texts


def test_a_default_that_is_removed_returns_to_that_of_the_server():
    before = {**BEFORE, "default_beta": 0.8}
    assert list(describe_changes(before, {**BEFORE, "default_beta": 0.5})) == ["β 0.8 → 0.5"]
    assert list(describe_changes(before, BEFORE)) == ["β 0.8 → the server's default β"]


def test_clients_that_may_choose_again_are_named():
    before = {**BEFORE, "clients_may_choose": False}
    assert list(describe_changes(before, BEFORE)) == ["clients may choose"]


def test_a_canary_and_a_plan_are_one_line_each():
    assert format_canary(None) == "none"
    assert format_canary({"beta": 0.9, "share": 0.1}) == "10 % at β 0.9"
    assert format_plan({**PLAN, "default_beta": 0.5}) == "2027-01-31T08:00:00Z revert to β 0.5, id ab12"


def test_each_token_that_was_added_replaced_or_removed_is_described():
    before, after = {"a": "0", "b": "0", "c": "0"}, {"b": "1", "c": "0", "d": "0"}
    assert list(describe_token_changes(before, after)) == ["token a removed", "token b replaced", "token d added"]
    assert list(describe_token_changes(before, before)) == []


def test_a_policy_is_described_by_its_beta_or_its_mix():
    assert format_policy(None) == "none"
    assert format_policy(0.5) == "0.5"
    assert format_policy({"mix": "fog:1", "beta_min": None, "beta_max": None}) == "fog:1"
    assert format_policy({"mix": "fog:1", "beta_min": 0.0, "beta_max": 0.5}) == "fog:1, β from 0 to 0.5"
