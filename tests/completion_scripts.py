"""Writes the completion scripts of `tureen` from the parsers of its commands: `python -m tests.completion_scripts`.

The scripts are files of the package, because building the parsers imports the server and takes seconds.
"""

import argparse
import importlib
import re
import types
from pathlib import Path
from typing import Literal, get_args, get_origin
from unittest import mock

import shtab

from serve.settings import Settings
from tureen.bundle.examples import example_names
from tureen.cli import COMMANDS
from tureen.commands.completion import SCRIPTS

NAMES = " ".join(example_names())
FUNCTION = "_tureen_example_or_dir"
BUNDLES = {"bash": FUNCTION, "zsh": FUNCTION, "fish": f"{NAMES} (__fish_complete_directories)"}
PREAMBLE = {
    "bash": f'{FUNCTION}() {{\n  compgen -W "{NAMES}" -- "$1"\n  compgen -d -- "$1"\n}}\n',
    "zsh": f"{FUNCTION}() {{\n  compadd -- {NAMES}\n  _files -/\n}}\n",
}


class _ParserFound(BaseException):
    pass


def parser_of(name):
    """Returns the parser of a command. A command without a module of parsers stops where it would parse."""
    command = COMMANDS[name]
    if command.parsers is not None:
        return getattr(importlib.import_module(command.parsers), f"{command.function}_parser")()
    found = []

    def stop(parser, *_):
        found.append(parser)
        raise _ParserFound

    run = getattr(importlib.import_module(command.module), command.function)
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            run([])
        except _ParserFound:
            return found[0]
    raise AssertionError(f"tureen {name} parses no arguments")


def main_parser():
    """Returns one parser of all commands, in which every argument has its choices or the kind of its files."""
    parser = argparse.ArgumentParser(prog="tureen", description="Serve image classifiers with a dial.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        own = parser_of(name)
        for part in with_subparsers(own):
            for action in part._actions:
                complete(action)
        if name == "serve":
            for action in own._actions:
                if action.dest in Settings.model_fields and action.option_strings:
                    action.choices = choices_of(Settings.model_fields[action.dest].annotation) or None
        commands.add_parser(name, parents=[own], add_help=False, help=command.summary, description=command.summary)
    return parser


def with_subparsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from with_subparsers(one)


def complete(action):
    """Adds to an argument what completes it, and removes from its help the default, which depends on the machine."""
    action.help = re.sub(r" \(default.*", "", action.help or "", flags=re.DOTALL)
    if action.choices is not None or action.nargs == 0:
        return
    if action.dest == "bundle" or (not action.option_strings and "BUNDLE" in str(action.metavar)):
        action.complete = BUNDLES
    elif action.metavar in ("DIR", "DIRECTORY", "RUN", "OUTPUT") or action.dest.endswith(("dir", "_roots")):
        action.complete = shtab.DIRECTORY
    elif action.metavar in ("FILE", "IMAGE", "INPUT", "DIR|CSV") or action.type is Path:
        action.complete = shtab.FILE


def choices_of(annotation):
    """Returns the values of a setting that has few: of a Literal, or of a boolean."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [choice for part in get_args(annotation) for choice in choices_of(part)]
    return []


def groups_after_arguments(parser):
    """Yields the words and the number of arguments before its subcommands of each command that has both."""
    for part in with_subparsers(parser):
        positional = [action for action in part._actions if not action.option_strings]
        before = [isinstance(action, argparse._SubParsersAction) for action in positional]
        if any(before[1:]):
            yield part.prog.split()[1:], before.index(True)


def replaced(text, found, replacement):
    assert text.count(found) >= 1, found
    return text.replace(found, replacement)


# In zsh, for an argument without choices: shows its description, unless the word may be an option.
GUARD = r'''_guard '^-*' \"\$descr\""'''


def corrected_zsh(text, parser):
    """Corrects what shtab writes for zsh: sourcing, `--option=value`, options before arguments, subcommands after."""
    text = replaced(text, "$zsh_eval_context[-1] == eval", "$zsh_eval_context[-1] == (eval|file)")
    # An option with a value: zsh then also completes the value after `=`.
    text = re.sub(r'^(  "\*?--[a-z0-9-]+)(?=\[.*\]:.*:.*"$)', r"\1=", text, flags=re.MULTILINE)
    # In the description of an argument, zsh shows these escapes.
    text = re.sub(r'^  "(?:\(\*\))?:.*$', lambda line: re.sub(r"\\([/@;])", r"\1", line[0]), text, flags=re.MULTILINE)
    # An argument that zsh cannot complete: else its description stops zsh from inserting an option.
    text = re.sub(r'^(  "(?:\(\*\))?:.*:)"$', lambda line: line[1] + GUARD, text, flags=re.MULTILINE)
    for words, before in groups_after_arguments(parser):
        start = text.index(f"_shtab_tureen_{'_'.join(words)}() {{")
        end = text.index("\n}\n", start)
        text = text[:start] + replaced(text[start:end], "$line[1]", f"$line[{before + 1}]") + text[end:]
    return text


def corrected_fish(text, parser):
    """Corrects what shtab writes for fish: subcommands after an argument."""
    cases = "".join(
        f"          case '{' '.join(words)}'\n            set before {before}\n"
        for words, before in groups_after_arguments(parser)
    )
    count = f'        set -l before 0\n        switch "$_shtab_tureen_cmdpath"\n{cases}        end\n'
    condition = "        if test $_shtab_tureen_npos -eq 0\n"
    text = replaced(text, condition, count + condition.replace("-eq 0", "-eq $before"))
    found = "set -g _shtab_tureen_cmdpath $candidate\n"
    return replaced(text, found, f"{found}            set -g _shtab_tureen_npos 0\n")


CORRECTED = {"bash": lambda text, _: text, "zsh": corrected_zsh, "fish": corrected_fish}


def scripts():
    """Yields the path and the text of each completion script."""
    parser = main_parser()
    for shell, name in SCRIPTS.items():
        text = CORRECTED[shell](shtab.complete(parser, shell, preamble=PREAMBLE), parser)
        yield SCRIPTS_DIRECTORY / name, "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


SCRIPTS_DIRECTORY = Path(__file__).parents[1] / "tureen" / "completions"

if __name__ == "__main__":
    SCRIPTS_DIRECTORY.mkdir(exist_ok=True)
    for path, text in scripts():
        path.write_text(text)
