import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.errors import SettingsFileError
from serve.settings import Settings
from serve.settings_file import masked_secrets, read_settings_file, settings_text, toml_value
from tureen.cli import main

EXAMPLE = Path(__file__).parents[2] / "deploy" / "tureen.toml"
SOURCES = dict.fromkeys(Settings.model_fields, "default")


def read(directory, text):
    (path := directory / "tureen.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_settings_file(path)


def test_keys_are_at_the_top_or_in_the_table_or_in_both(tmp_path):
    assert read(tmp_path, "port = 1").values == {"port": 1}
    assert read(tmp_path, "serve.port = 1").values == {"port": 1}
    assert read(tmp_path, "port = 1\n[serve]\nmax_batch = 2").values == {"port": 1, "max_batch": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nmax_bach = 4", ", line 2: there is no setting 'max_bach'; did you mean 'max_batch'?"),
        ("max-batch = 4", ", line 1: there is no setting 'max-batch'; did you mean 'max_batch'?"),
        ("TUREEN_MAX_BATCH = 4", ", line 1: there is no setting 'TUREEN_MAX_BATCH'; did you mean 'max_batch'?"),
        ("[server]\nport = 1", ", line 1: there is no setting 'server'; did you mean 'serve'?"),
        ("zzz = 1", ", line 1: there is no setting 'zzz'"),
        ('"a\\nb" = 1', ": there is no setting 'a"),
        ("serve = 3", ", line 1: serve is not a table: write [serve]"),
        ("port = 1\n[serve]\nport = 2", ", line 1: port is in the file twice: remove one"),
        ("[serve]\nconfig = 'x'", ", line 2: config is an option of the command line only: remove it from the file"),
        ("print-config = true", ", line 1: print_config is an option of the command line only: remove it"),
        ("no_calibration = true", "calibration is an option of the command line only: write calibration = false"),
        ('port = "8000"', ", line 1: port: Input should be a valid integer"),
        ("port = true", ", line 1: port: Input should be a valid integer"),
        ("port = 8000.0", ", line 1: port: Input should be a valid integer"),
        ("calibration = 1", ", line 1: calibration: Input should be a valid boolean"),
        ("bundle = 1", ", line 1: bundle: Input should be a valid string"),
        ('engine = "tensorflow"', ", line 1: engine: Input should be "),
        ("default_beta = 2", ", line 1: default_beta: β is 2"),
        ("head_timeout_s = inf", ", line 1: head_timeout_s: Input should be a finite number"),
        ("allowed_hosts = [1]", ", line 1: allowed_hosts: give a text, or an array of texts"),
        ('job_input_roots = ["missing"]', ", line 1: job_input_roots: the directory "),
        ("port = 1979-05-27", ", line 1: port: give a text, a number, true or false, or an array of texts"),
        (f"port = 0x{'f' * 5000}", ", line 1: port: give a text, a number, true or false"),
        ("port = ?\n", " is not TOML: Invalid value (at line 1, column 8)"),
        ("port = 1\nport = 2\n", " is not TOML: Cannot overwrite a value (at line 2"),
        ("port = " + "[" * 100_000, " is not TOML: "),
        (b"host = '\xff'", " is not TOML: it is not text in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path_key_and_line(text, message, tmp_path):
    with pytest.raises(SettingsFileError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'tureen.toml'}{message}" if message[0] in ",: " else str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_error_with_exit_status_2(tmp_path, capsys):
    assert main(["serve", "signs", "--config", str(tmp_path / "missing.toml")]) == 2
    error = f"tureen serve: {tmp_path / 'missing.toml'} cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == error
    assert main(["serve", "signs", "--config", str(tmp_path)]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err


def test_paths_are_relative_to_the_directory_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "more").mkdir()
    text = 'bundle = "digits"\ncache_dir = "/cache"\ntoken_dir = "../tokens"\njob_input_roots = ["images"]'
    monkeypatch.chdir("/")
    values = read(tmp_path, f'{text}\njob_output_roots = "images:more"').values
    assert values["bundle"] == str(tmp_path / "digits")
    assert values["cache_dir"] == "/cache"
    assert values["token_dir"] == str(tmp_path / "../tokens")
    assert values["job_input_roots"] == [str(tmp_path / "images")]
    assert values["job_output_roots"] == [str(tmp_path / "images"), str(tmp_path / "more")]


def test_a_bundle_of_the_name_of_an_example_is_the_example_unless_the_path_exists(tmp_path):
    assert read(tmp_path, 'bundle = "signs"').values["bundle"] == "signs"
    (tmp_path / "signs").mkdir()
    assert read(tmp_path, 'bundle = "signs"').values["bundle"] == str(tmp_path / "signs")


def test_a_byte_order_mark_is_ignored(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfport = 1").values == {"port": 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ada:secret@host/db", "postgresql://ada:***@host/db"),
        ("postgresql://ada:a/b:c@d@host:5432/db", "postgresql://ada:***@host:5432/db"),
        ("postgresql://ada@host:5432/db", "postgresql://ada@host:5432/db"),
        ("postgresql://host/db?user=ada&password=secret&sslmode=require",
         "postgresql://host/db?user=ada&password=***&sslmode=require"),
        ("https://:secret@collector:4318", "https://:***@collector:4318"),
        ("sqlite:////var/lib/tureen.db", "sqlite:////var/lib/tureen.db"),
        ("a:b@c", "a:b@c"),
    ],
)  # fmt: skip
def test_the_secrets_of_a_url_are_masked(text, shown):
    assert masked_secrets(text) == shown


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\x7f\x00\\\"'\n\u2028")
def test_any_text_is_the_same_after_toml(text):
    assert tomllib.loads(f"x = {toml_value(text)}  # flag") == {"x": text}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)
PATHS = TEXTS.map(lambda text: Path("/", text.replace("/", "")))
HOSTS = st.frozensets(st.sampled_from(["*", "a.example", "[::1]", "10.0.0.1"]))
OF_NAME = {
    "allowed_hosts": st.none() | HOSTS,
    "cors_origins": st.frozensets(st.sampled_from(["*", "https://a.example", "http://localhost:5173"])),
    "job_input_roots": st.sampled_from([(), ("/",), ("/", "/tmp")]),
    "job_output_roots": st.sampled_from([(), ("/tmp",)]),
    "otlp_endpoint": st.sampled_from([None, "http://localhost:4318"]),
    "default_beta": st.none() | st.floats(0, 1),
}


def values_of(annotation, metadata) -> st.SearchStrategy:
    """A strategy of the values of a field, by its type and its limits."""
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_args(annotation):
        return st.one_of([values_of(part, metadata) for part in get_args(annotation)])
    limits = {name: getattr(one, name) for one in metadata for name in ("ge", "gt", "le") if hasattr(one, name)}
    if annotation is int:
        return st.integers(limits.get("ge", 1), limits.get("le", 2**70))
    if annotation is float:
        return st.floats(limits.get("ge", limits.get("gt")), limits.get("le"), allow_infinity=False,
                         allow_nan=False, exclude_min="gt" in limits)  # fmt: skip
    return {bool: st.booleans(), str: TEXTS, Path: PATHS, type(None): st.none()}[annotation]


def any_settings() -> st.SearchStrategy:
    return st.fixed_dictionaries(
        {"bundle": PATHS},
        optional={
            name: OF_NAME[name] if name in OF_NAME else values_of(field.annotation, field.metadata)
            for name, field in Settings.model_fields.items()
            if name != "bundle"
        },
    )


@given(any_settings())
def test_the_printed_settings_are_read_back_as_the_same_settings(values):
    try:
        settings = Settings(**values)
    except ValidationError as error:
        assert error.errors()[0]["loc"] == ("streams",)  # more streams than threads
        settings = Settings(**{**values, "streams": None})
    with tempfile.TemporaryDirectory() as directory:
        (path := Path(directory, "printed.toml")).write_text(settings_text(settings, SOURCES))
        again = Settings(**read_settings_file(path).values)
    secret = settings.store is not None and masked_secrets(settings.store) != settings.store
    assert again == (settings.model_copy(update={"store": None}) if secret else settings)


def example_lines() -> Iterator[tuple[str, str]]:
    for line in EXAMPLE.read_text().splitlines():
        name, _, value = line.removeprefix("# ").partition(" = ")
        if name in Settings.model_fields:
            yield name, value


def test_the_example_has_every_setting_in_their_order_with_its_help():
    assert [name for name, _ in example_lines()] == list(Settings.model_fields)
    text = " ".join(line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines())
    assert [name for name, field in Settings.model_fields.items() if field.description not in text] == []


def test_a_key_of_the_example_shows_its_default_unless_it_has_none_or_one_of_the_machine(tmp_path):
    lines = dict(example_lines())
    values = read(tmp_path, "\n".join(f"{name} = {value}" for name, value in lines.items())).values
    compared = 0
    for name, field in Settings.model_fields.items():
        if field.is_required() or field.default is None or field.default_factory:
            continue
        default = list(field.default) if isinstance(field.default, frozenset | tuple) else field.default
        assert values[name] == default, name
        compared += 1
    assert compared >= 30


def test_the_example_starts_a_server_of_an_example_bundle():
    assert read_settings_file(EXAMPLE).values == {"bundle": "signs"}
