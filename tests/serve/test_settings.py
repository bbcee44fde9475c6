from pathlib import Path

import pytest

from serve.settings import Settings, parse_settings
from tureen.engines.base import EngineOptions


def test_a_flag_beats_a_variable_beats_the_default():
    environment = {"TUREEN_MAX_BATCH": "4", "TUREEN_PORT": "9000", "TUREEN_UNRELATED": "x", "PATH": "/bin"}
    settings = parse_settings(["some-bundle", "--port", "9001"], environment)
    assert (settings.bundle, settings.port, settings.max_batch) == (Path("some-bundle"), 9001, 4)
    assert settings.max_requests == Settings.model_fields["max_requests"].default


@pytest.mark.parametrize(("text", "beta"), [("robust", 1), ("clean", 0), ("0.25", 0.25)])
def test_the_default_beta_is_a_number_or_a_mode(text, beta):
    assert parse_settings(["b", "--default-beta", text], {}).default_beta == beta


def test_the_bundle_may_come_from_the_environment():
    assert parse_settings([], {"TUREEN_BUNDLE": "/models/digits"}).bundle == Path("/models/digits")


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ([], "BUNDLE"),
        (["b", "--port", "70000"], "--port"),
        (["b", "--engine", "tensorflow"], "--engine"),
        (["b", "--default-beta", "2"], "--default-beta"),
        (["b", "--default-beta", "nan"], "--default-beta"),
        (["b", "--max-batch", "0"], "--max-batch"),
        (["b", "--max-batch", "many"], "--max-batch"),
        (["b", "--max-image-pixels", "99999999999"], "--max-image-pixels"),
        (["b", "--timeout-ms", "0"], "--timeout-ms"),
        (["b", "--drain-timeout-s", "-1"], "--drain-timeout-s"),
        (["b", "--max-connections", "0"], "--max-connections"),
        (["b", "--head-timeout-s", "0"], "--head-timeout-s"),
        (["b", "--body-timeout-s", "inf"], "--body-timeout-s"),
        (["b", "--min-body-rate", "-1"], "--min-body-rate"),
        (["b", "--send-timeout-s", "nan"], "--send-timeout-s"),
        (["b", "--allowed-hosts", "a.example, "], "--allowed-hosts"),
        (["b", "--allowed-hosts", "http://a.example"], "--allowed-hosts"),
        (["b", "--allowed-hosts", "a.example:80"], "--allowed-hosts"),
        (["b", "--drain-delay-s", "-1"], "--drain-delay-s"),
        (["b", "--workers", "0"], "--workers"),
        (["b", "--streams", "0"], "--streams"),
        (["b", "--streams", "3", "--threads", "2"], "--streams"),
    ],
)
def test_a_wrong_value_exits_with_2_naming_flag_and_variable(arguments, flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_settings(arguments, {})
    assert exit_.value.code == 2
    assert f"{flag} (TUREEN_" in capsys.readouterr().err


def test_threads_and_streams_reach_the_engine(tmp_path):
    environment = {"TUREEN_STREAMS": "2", "TUREEN_CACHE_DIR": str(tmp_path)}
    options = parse_settings(["b", "--threads", "4", "--max-batch", "8"], environment).engine_options
    assert options == EngineOptions(threads=4, streams=2, max_batch=8, cache=tmp_path)


@pytest.mark.parametrize(
    ("flags", "hosts"),
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}),
        (["--host", "127.0.0.2"], {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        (["--host", "0.0.0.0"], None),
        (["--host", "tureen.example"], None),
        (["--allowed-hosts", "*"], None),
        (["--host", "0.0.0.0", "--allowed-hosts", "A.example, b.example,[::1]"], {"a.example", "b.example", "[::1]"}),
    ],
)
def test_which_hosts_are_trusted(flags, hosts):
    assert parse_settings(["b", *flags], {}).connection_limits.hosts == hosts


def test_limits_of_connections_reach_the_protocol():
    flags = ("--head-timeout-s", "1", "--body-timeout-s", "2", "--min-body-rate", "3", "--send-timeout-s", "4")
    limits = parse_settings(["b", *flags, "--max-connections", "5"], {}).connection_limits
    assert (limits.head_timeout_s, limits.body_timeout_s, limits.min_body_rate) == (1, 2, 3)
    assert (limits.send_timeout_s, limits.max_connections) == (4, 5)


def test_a_connection_outlives_the_limit_of_most_balancers():
    assert parse_settings(["b"], {}).keep_alive_s == 75
    assert parse_settings(["b"], {"TUREEN_KEEP_ALIVE_S": "620"}).keep_alive_s == 620


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    shown = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        if name != "bundle":
            assert f"--{name.replace('_', '-')}" in shown
        assert field.description
    assert "default: 8000" in shown


def test_a_port_for_grpc_is_none_of_the_defaults():
    assert parse_settings(["b"], {}).grpc_port is None
    assert parse_settings(["b", "--grpc-port", "9001"], {}).grpc_port == 9001


def test_probabilities_are_calibrated_unless_a_flag_or_variable_turns_it_off():
    assert parse_settings(["b"], {}).calibration
    assert not parse_settings(["b", "--no-calibration"], {}).calibration
    assert not parse_settings(["b", "--calibration", "false"], {}).calibration
    assert not parse_settings(["b"], {"TUREEN_CALIBRATION": "false"}).calibration
    assert parse_settings(["b", "--calibration", "true"], {"TUREEN_CALIBRATION": "0"}).calibration
