import pytest
from pydantic import ValidationError

from serve.settings import Settings
from serve.settings_sources import parse_settings
from tureen.engines.base import EngineOptions


@pytest.mark.parametrize(("text", "beta"), [("robust", 1), ("clean", 0), ("0.25", 0.25)])
def test_the_default_beta_is_a_number_or_a_mode(text, beta):
    assert parse_settings(["b", "--default-beta", text], {}).default_beta == beta


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
    more = ("--max-connections", "5", "--refusal-delay-ms", "60", "--max-delayed-refusals", "7")
    limits = parse_settings(["b", *flags, *more], {}).connection_limits
    assert (limits.refusal_delay_s, limits.max_delayed_refusals) == (0.06, 7)
    assert (limits.head_timeout_s, limits.body_timeout_s, limits.min_body_rate) == (1, 2, 3)
    assert (limits.send_timeout_s, limits.max_connections) == (4, 5)


def test_a_connection_outlives_the_limit_of_most_balancers():
    assert parse_settings(["b"], {}).keep_alive_s == 75
    assert parse_settings(["b"], {"TUREEN_KEEP_ALIVE_S": "620"}).keep_alive_s == 620


def test_a_port_for_grpc_is_none_of_the_defaults():
    assert parse_settings(["b"], {}).grpc_port is None
    assert parse_settings(["b", "--grpc-port", "9001"], {}).grpc_port == 9001


def test_probabilities_are_calibrated_unless_a_flag_or_variable_turns_it_off():
    assert parse_settings(["b"], {}).calibration
    assert not parse_settings(["b", "--no-calibration"], {}).calibration
    assert not parse_settings(["b", "--calibration", "false"], {}).calibration
    assert not parse_settings(["b"], {"TUREEN_CALIBRATION": "false"}).calibration
    assert parse_settings(["b", "--calibration", "true"], {"TUREEN_CALIBRATION": "0"}).calibration


@pytest.mark.parametrize("field", ["job_input_roots", "allowed_hosts", "cors_origins"])
@pytest.mark.parametrize("value", [5, True, [1], {"a": 1}])
def test_a_list_of_texts_takes_no_other_value(field, value):
    with pytest.raises(ValidationError, match="give a text, or an array of texts"):
        Settings(bundle="b", **{field: value})
