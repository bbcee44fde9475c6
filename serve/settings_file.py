"""Reads settings from a TOML file, and writes them as TOML. Knows no flags and no environment variables."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from serve.errors import SettingsFileError
from serve.settings import Settings
from tureen.bundle.examples import example_names
from tureen.errors import did_you_mean, printable

TABLE: Final = "serve"  # the keys may be in this table, or at the top of the file
COMMAND_LINE_ONLY: Final = ("config", "print_config", "help")
MASK: Final = "***"
_IN_QUERY = re.compile(r"([?&;][^=&;]*(?:passw|secret|token|api_?key)[^=&;]*=)[^&;]+", re.IGNORECASE)
_IN_HEAD = re.compile(r"(://[^:]*:).*(@)", re.DOTALL)


@dataclass(frozen=True)
class SettingsFile:
    """The settings of one file. values: by the name of the setting. lines: the line of each key, where it is known."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def place(self, name: str) -> str:
        """Returns where a setting is in the file, for a message: the path, and the line if it is known."""
        return _place(self.path, self.lines.get(name))


def read_settings_file(path: Path) -> SettingsFile:
    """Returns the settings of a TOML file. Relative paths in it become relative to the directory of the file.

    A `bundle` that does not exist there, and is the name of an example, remains this name. Raises SettingsFileError if
    the file cannot be read, is not TOML, or has an unknown key or a value of a wrong type or range.
    """
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsFileError(f"{printable(str(path))} cannot be read: {error.strerror or 'no reason'}") from None
    except UnicodeDecodeError:
        raise SettingsFileError(f"{printable(str(path))} is not TOML: it is not text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise SettingsFileError(f"{printable(str(path))} is not TOML: {printable(str(error))}") from None
    table = document.pop(TABLE, {})
    if not isinstance(table, dict):
        raise SettingsFileError(f"{_place(path, _line(text, TABLE))}: {TABLE} is not a table: write [{TABLE}]")
    for name in [*document, *table]:
        if name not in Settings.model_fields:
            raise SettingsFileError(f"{_place(path, _line(text, name))}: {_unknown(name)}")
        if name in document and name in table:
            raise SettingsFileError(f"{_place(path, _line(text, name))}: {name} is in the file twice: remove one")
    values = {**document, **table}
    file = SettingsFile(path, values, {name: line for name in values if (line := _line(text, name)) is not None})
    directory = path.absolute().parent
    return SettingsFile(path, {name: _checked(file, name, directory) for name in values}, file.lines)


def settings_text(settings: Settings, sources: Mapping[str, str]) -> str:
    """Returns the settings as TOML, one line each, with the source of each as a comment.

    `read_settings_file` reads the same settings from it, with absolute paths. A setting without a value is a comment.
    So is a setting with a password, which is masked. sources: by the name of the setting.
    """
    lines = []
    for name, field in Settings.model_fields.items():
        source, value = sources[name], getattr(settings, name)
        if value is None:
            lines.append(f"# {name} has no value  # {source}")
            continue
        shown = toml_value(_plain(name, field, value))
        masked = toml_value(masked_secrets(value)) if isinstance(value, str) else shown
        lines.append(
            f"{name} = {shown}  # {source}"
            if masked == shown
            else f"# {name} = {masked}  # {source}; its secret is not shown: give it as TUREEN_{name.upper()}"
        )
    return "\n".join([f"[{TABLE}]", *lines, ""])


def toml_value(value: bool | float | str | Collection[str]) -> str:
    """Returns a value as TOML: true, a number, a text in quotes or an array of texts."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML has the escapes of JSON
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return f"[{', '.join(map(toml_value, value))}]"


def masked_secrets(text: str) -> str:
    """Returns the text, with `***` for the password of a URL and for secrets in its query."""
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_HEAD.sub(rf"\1{MASK}\2", text)) if "://" in text else text


def _plain(name: str, field: FieldInfo, value: Any) -> Any:
    """Returns the value of a setting as what TOML can hold, with absolute paths."""
    if isinstance(value, Path):
        is_example = name == "bundle" and str(value) in example_names() and not value.exists()
        return str(value if is_example else value.absolute())
    if isinstance(value, frozenset):
        return sorted(value)
    return [str(path) for path in value] if isinstance(value, tuple) else value


def _checked(file: SettingsFile, name: str, directory: Path) -> Any:
    """Returns the value of a setting, with its paths below `directory`. Raises SettingsFileError if it is not valid.

    Types are checked without conversions: "8000" and true are not numbers. The model checks what several settings have
    to satisfy together, and installed packages.
    """
    field, value = Settings.model_fields[name], file.values[name]
    if _holds_paths(field.annotation):
        has_several = isinstance(value, str) and get_origin(field.annotation) is tuple
        parts = value.split(os.pathsep) if has_several else value
        value = _below(directory, parts, is_bundle=name == "bundle")
    try:
        TypeAdapter(field.rebuild_annotation()).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingsFileError(f"{file.place(name)}: {name}: {printable(message)}") from None
    except (TypeError, ValueError):  # a date, a time, or a number of thousands of digits
        raise SettingsFileError(
            f"{file.place(name)}: {name}: give a text, a number, true or false, or an array of texts"
        ) from None
    return value


def _below(directory: Path, value: Any, *, is_bundle: bool) -> Any:
    """Returns the path or the paths of a value, absolute. Returns a value of another type unchanged."""
    if isinstance(value, list):
        return [_below(directory, one, is_bundle=False) for one in value]
    if not isinstance(value, str):
        return value
    path = directory / value
    return value if is_bundle and value in example_names() and not path.exists() else str(path)


def _holds_paths(annotation: Any) -> bool:
    return annotation is Path or any(_holds_paths(part) for part in get_args(annotation))


def _unknown(name: str) -> str:
    """Returns the message for a key that is no setting."""
    plain = name.lower().removeprefix("tureen_").replace("-", "_")
    if plain in COMMAND_LINE_ONLY:
        return f"{plain} is an option of the command line only: remove it from the file"
    if (positive := plain.removeprefix("no_")) in Settings.model_fields and positive != plain:
        return f"{plain} is an option of the command line only: write {positive} = false"
    return f"there is no setting {printable(name)!r}{did_you_mean(plain, [*Settings.model_fields, TABLE])}"


def _line(text: str, name: str) -> int | None:
    """Returns the number of the first line that begins with a key, or None if no line does."""
    key = re.compile(rf"\s*\[*\s*(?:{TABLE}\s*\.\s*)?[\"']?{re.escape(name)}[\"']?\s*[=.\]]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if key.match(line)), None)


def _place(path: Path, line: int | None) -> str:
    return printable(str(path)) if line is None else f"{printable(str(path))}, line {line}"
