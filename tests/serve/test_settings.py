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
