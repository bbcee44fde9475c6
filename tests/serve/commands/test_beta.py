"""The arguments of `tureen beta`, and the text that it prints for a state, without a server."""

import pytest

from serve.commands.beta import beta, format_default, format_state

SHARE = {"value": 0.934, "low": 0.92, "high": 0.945}
EXPECTED = {
    "clean": SHARE,
    "robust": {"value": 0.5, "low": 0.45, "high": 0.55},
    "n": 1000,
    "attack": "pgd",
    "epsilon_255": 8.0,
    "interpolated": True,
}
STATE = {
    "revision": 3,
    "default_beta": 0.7,
    "default_beta_source": "operator",
    "beta_min": 0.25,
    "beta_max": 1.0,
    "clients_may_choose": True,
    "policies": {"uploads": 0.9},
    "canary": {"beta": 0.8, "share": 0.1},
    "pending": [{"id": "ab12", "kind": "revert", "at": "2027-01-31T08:00:00.000000Z", "default_beta": None}],
    "changed": {"at": "2027-01-31T07:00:00.000000Z", "who": "ada", "action": "set", "reason": "an attack"},
    "model": {"name": "digits", "version": "2"},
    "expected": EXPECTED,
    "workers": [{"worker": 0, "revision": 3, "model": "digits 2"}, {"worker": 1, "revision": 2, "model": "digits 2"}],
    "store": {"is_reachable": True, "unreachable_since": None},
}


def test_a_state_is_printed_a_line_for_each_fact():
    assert format_state(STATE).splitlines() == [
        "revision 3: default β 0.7 (operator), clean accuracy ≈ 93.4 % (92.0–94.5), robust ≈ 50.0 % (45.0–55.0) "
        "under pgd, l∞ ε = 8/255, n = 1000; ≈ is an estimate between two measured β",
        "          2027-01-31T07:00:00Z by ada: set, “an attack”",
        "clients   choose from 0.25 to 1",
        "policy    uploads → 0.9",
        "canary    10 % at β 0.8",
        "planned   2027-01-31T08:00:00Z revert to the server's default β, id ab12",
        "workers   0 at 3, 1 at 2",
    ]


def test_an_accuracy_that_was_measured_at_this_beta_is_no_estimate():
    assert "≈" not in format_default({**STATE, "expected": {**EXPECTED, "interpolated": False}})


def test_the_radius_has_the_norm_of_the_attack():
    """Servers of earlier versions send no norm: theirs is l∞."""
    assert "l2 ε = 8/255" in format_default({**STATE, "expected": {**EXPECTED, "norm": "l2"}})


def test_a_robust_accuracy_whose_check_failed_is_marked():
    state = {**STATE, "expected": {**EXPECTED, "failed_checks": ["one", "two"]}}
    assert format_default(state).endswith("; ! robust accuracy too high: check failed (one; two)")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"clients_may_choose": False}, "clients   choose nothing"),
        ({"workers": []}, "workers   none"),
        (
            {"workers": [{**STATE["workers"][0], "model": "digits 1"}, STATE["workers"][1]]},
            "models    differ: 0 serves digits 1, 1 serves digits 2; the accuracy above is of digits 2",
        ),
        (
            {"store": {"is_reachable": False, "unreachable_since": "2027-01-31T08:00:00"}},
            "store     unreachable since 2027-01-31T08:00:00: these are the last known settings",
        ),
    ],
)
def test_a_state_that_differs_has_its_line(changes, line):
    assert line in format_state({**STATE, **changes}).splitlines()


def test_the_default_of_a_model_with_one_token_or_without_measured_accuracy_is_short():
    state = {**STATE, "default_beta": None, "default_beta_source": "bundle", "expected": None}
    assert format_default(state) == "revision 3: default β none, the model has one token (bundle)"
    assert format_default({**STATE, "expected": None}) == "revision 3: default β 0.7 (operator)"
    # servers of earlier versions send no strength
    state = {**STATE, "expected": None, "default_strength": 0.75}
    assert format_default(state) == "revision 3: default β 0.7, strength 0.75 (operator)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "1.8"], "1.8"),
        (["set", "--strength", "robust"], "'robust'; give a number from 0"),
        (["set", "0.5", "--strength", "0.5"], "not allowed with"),
        (["set", "--min", "nan"], "nan"),
        (["set", "0.5", "--for", "1w"], "'1w' is not a duration"),
        (["set", "0.5", "--for", "soon"], "'soon' is not a duration"),
        (["set", "0.5", "--at", "2027-01-31T08:00:00"], "is not a time"),
        (["set", "0.5", "--for", "1h", "--at", "2027-01-31T08:00:00Z"], "not allowed with"),
        (["set", "--canary", "0.9"], "'0.9' is not a canary"),
        (["set", "--policy", "uploads"], "'uploads' is not a policy"),
        (["history", "--limit", "0"], "'0' is not a number from 1 to 1000"),
        (["history", "--before", "x"], "'x' is not a revision"),
        (["rollback", "-1"], "--reason"),
        (["set", "0.5"], "--reason"),
        ([], "command"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value_before_a_server_is_contacted(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        beta(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
