import re
import tomllib
from pathlib import Path

import pytest

from serve.errors import SettingsFileError
from serve.settings import Settings
from serve.settings_sources import parse_settings


def file_with(directory, text):
    (path := directory / "tureen.toml").write_text(text)
    return str(path)


def test_a_flag_beats_a_variable_beats_the_default():
    environment = {"TUREEN_MAX_BATCH": "4", "TUREEN_PORT": "9000", "TUREEN_UNRELATED": "x", "PATH": "/bin"}
    settings = parse_settings(["some-bundle", "--port", "9001"], environment)
    assert (settings.bundle, settings.port, settings.max_batch) == (Path("some-bundle"), 9001, 4)
    assert settings.max_requests == Settings.model_fields["max_requests"].default


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


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    shown = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        if name != "bundle":
            assert f"--{name.replace('_', '-')}" in shown
        assert field.description
    assert "default: 8000" in shown


@pytest.mark.parametrize(
    ("flag", "variable", "in_file", "port"),
    [
        (True, True, True, 9001),
        (True, False, True, 9001),
        (False, True, True, 9002),
        (False, False, True, 9003),
        (False, True, False, 9002),
        (False, False, False, 8000),
    ],
)
def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(flag, variable, in_file, port, tmp_path):
    arguments = ["b", "--config", file_with(tmp_path, "port = 9003" if in_file else "")]
    arguments += ["--port", "9001"] if flag else []
    assert parse_settings(arguments, {"TUREEN_PORT": "9002"} if variable else {}).port == port


def test_a_variable_names_the_file_and_a_flag_names_another(tmp_path):
    first = file_with(tmp_path, 'bundle = "signs"\nmax_batch = 4')
    (second := tmp_path / "second.toml").write_text('[serve]\nbundle = "cifar10"')
    assert parse_settings([], {"TUREEN_CONFIG": first}).max_batch == 4
    settings = parse_settings(["--config", str(second)], {"TUREEN_CONFIG": first})
    assert (settings.bundle, settings.max_batch) == (Path("cifar10"), 32)


def test_a_wrong_value_of_the_file_is_refused_also_if_a_flag_overrides_it(tmp_path):
    with pytest.raises(SettingsFileError, match="port: Input should be less than or equal to 65535"):
        parse_settings(["b", "--port", "1", "--config", file_with(tmp_path, "port = 70000")], {})


def test_what_settings_satisfy_together_is_refused_with_the_line_of_the_file(tmp_path, capsys):
    path = file_with(tmp_path, "threads = 2\n\nstreams = 3\n")
    with pytest.raises(SystemExit) as exit_:
        parse_settings(["b", "--config", path], {})
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"tureen serve: {path}, line 3: streams: 3 streams need 3 threads")
    assert parse_settings(["b", "--config", path, "--threads", "3"], {}).streams == 3


def printed(arguments, environment, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_settings([*arguments, "--print-config"], environment)
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_print_config_names_the_source_of_every_setting(tmp_path, capsys):
    path = file_with(tmp_path, "max_batch = 4\nport = 1")
    shown = printed(["signs", "--no-calibration", "--config", path], {"TUREEN_PORT": "9000"}, capsys)
    sources = dict(re.findall(r"^(?:# )?(\w+) .* # (\w+)$", shown, re.MULTILINE))
    assert sources.keys() == Settings.model_fields.keys()
    assert {name: source for name, source in sources.items() if source != "default"} == {
        "bundle": "flag", "calibration": "flag", "port": "variable", "max_batch": "file",
    }  # fmt: skip
    values = tomllib.loads(shown)["serve"]
    assert (values["bundle"], values["calibration"], values["port"], values["max_batch"]) == ("signs", False, 9000, 4)


def test_print_config_shows_no_password(capsys):
    store = "postgresql+psycopg://ada:p@ss:word@database/tureen"
    shown = printed(["signs", "--store", store], {}, capsys)
    assert "word" not in shown
    assert '# store = "postgresql+psycopg://ada:***@database/tureen"' in shown
    assert "store" not in tomllib.loads(shown)["serve"]


def test_a_relative_bundle_of_a_flag_is_printed_as_an_absolute_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = printed(["some-bundle"], {}, capsys)
    assert tomllib.loads(shown)["serve"]["bundle"] == str(tmp_path / "some-bundle")
