"""Collects the settings of `tureen serve` from flags, environment variables, a file and defaults, in this order."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from serve.settings import Settings
from serve.settings_file import SettingsFile, read_settings_file, settings_text

CONFIG_VARIABLE = "TUREEN_CONFIG"


def parse_settings(arguments: list[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Returns the settings of `tureen serve`. Exits with status 2 if a value is invalid.

    A flag overrides the environment variable TUREEN_… of the setting. The variable overrides the key of the file that
    --config or TUREEN_CONFIG names, and the key overrides the default. With --print-config, prints the settings as TOML
    and exits with status 0. Raises SettingsFileError if the file cannot be used.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    config, is_printed = options.pop("config"), options.pop("print_config")
    flags = {name: value for name, value in options.items() if value is not None}
    variables = {name: environment[v] for name in Settings.model_fields if (v := _variable(name)) in environment}
    config = config if config is not None else environment.get(CONFIG_VARIABLE)
    file = SettingsFile(Path(), {}, {}) if config is None else read_settings_file(Path(config))
    try:
        settings = Settings.model_validate({**file.values, **variables, **flags})
    except ValidationError as error:
        for wrong in error.errors():
            name = str(wrong["loc"][0])
            is_from_file = name in file.values and name not in variables and name not in flags
            place = f"{file.place(name)}: {name}" if is_from_file else f"{_flag(name)} ({_variable(name)})"
            print(f"tureen serve: {place}: {wrong['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        parser.exit(2, "tureen serve: see --help\n")
    if is_printed:
        named = ((flags, "flag"), (variables, "variable"), (file.values, "file"))
        sources = {
            name: next((source for values, source in named if name in values), "default")
            for name in Settings.model_fields
        }
        print(settings_text(settings, sources), end="")
        parser.exit(0)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen serve",
        description="Serve a bundle over HTTP. Each option is also an environment variable, and a key of the file of "
        "--config: --max-batch is TUREEN_MAX_BATCH, and max_batch in the file.",
        epilog="example: tureen serve digits-bundle --port 8000 --default-beta 0.3",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings; flags and variables override it; also TUREEN_CONFIG; default: none",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every setting as TOML, with its source, and exit"
    )
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        default_text = (
            ""
            if name == "bundle" or default is None or "default:" in (field.description or "")
            else f" (default: {default})"
        )
        text = f"{field.description}{default_text}".replace("%", "%%")
        if name == "bundle":
            parser.add_argument(name, nargs="?", metavar="BUNDLE", help=text)
        else:
            flag = _flag(name)
            parser.add_argument(flag, dest=name, metavar=name.upper(), help=text)
            if field.annotation is bool:
                parser.add_argument(
                    f"--no-{flag[2:]}", dest=name, action="store_const", const="false", help=f"the same as {flag} false"
                )
    return parser


def _flag(name: str) -> str:
    return "BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"TUREEN_{name.upper()}"
